//! Who this server is: an id that is made once and kept.

use std::path::Path;

use anyhow::Context as _;
use basin_model::HostId;
use basin_node::cluster::ClusterDir;
use basin_node::cluster::leave::HOST_ID;

/// The server's id: made at the first start, and kept.
pub fn host_id(state_dir: &Path) -> anyhow::Result<HostId> {
    let path = state_dir.join(HOST_ID);
    // A server that was leaving its cluster when it died has it there.
    let leaving = ClusterDir::current(state_dir).path().join(HOST_ID);
    for path in [&path, &leaving] {
        match std::fs::read_to_string(path) {
            Ok(text) => {
                return text
                    .trim()
                    .parse()
                    .with_context(|| format!("{} does not hold a server's id", path.display()));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        }
    }
    let id = HostId::from_uuid(uuid::Uuid::now_v7());
    let temporary = state_dir.join("host-id.new");
    let write = || {
        std::fs::write(&temporary, format!("{id}\n"))?;
        std::fs::File::open(&temporary)?.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        std::fs::File::open(state_dir)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(id)
}

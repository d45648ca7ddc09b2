//! A server that was removed from its cluster begins anew, alone.

use std::io;
use std::path::Path;

use jiff::Timestamp;

use super::ClusterDir;

/// The server's id, beside the cluster's things while it is leaving.
pub const HOST_ID: &str = "host-id";

/// The default datastore. It is marked as one that the cluster knows.
const DATASTORES: &str = "datastores";

/// Puts everything of the cluster aside; deletes nothing. The server's id goes along:
/// the cluster has shut it out for good, and under a new one it may join again.
pub fn leave(state_dir: &Path, now: Timestamp) -> io::Result<()> {
    let current = ClusterDir::current(state_dir).path();
    for name in [DATASTORES, HOST_ID] {
        let free = (1..).map(|n| if n == 1 { name.to_owned() } else { format!("{name}.{n}") });
        let to = free.map(|name| current.join(name)).find(|to| name == HOST_ID || !to.exists());
        match std::fs::rename(state_dir.join(name), to.unwrap_or_default()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    let aside = (0..).map(|n| now.as_second() + n);
    let aside = aside.map(|n| state_dir.join(format!("cluster.left-{n}"))).find(|p| !p.exists());
    std::fs::rename(current, aside.unwrap_or_default())?;
    std::fs::File::open(state_dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_the_cluster_goes_aside_also_after_a_crash() {
        let state = tempfile::tempdir().unwrap();
        let at = |name: &str| state.path().join(name);
        let make = || {
            std::fs::create_dir_all(at("cluster/tls")).unwrap();
            std::fs::create_dir_all(at("datastores/default")).unwrap();
            std::fs::write(at(HOST_ID), "1").unwrap();
        };
        make();
        leave(state.path(), Timestamp::UNIX_EPOCH).unwrap();
        assert!(!at("cluster").exists() && !at(HOST_ID).exists() && !at(DATASTORES).exists());
        assert!(at("cluster.left-0/datastores/default").exists());
        // Cut off in the middle, and in the same second.
        make();
        std::fs::rename(at(DATASTORES), at("cluster/datastores")).unwrap();
        leave(state.path(), Timestamp::UNIX_EPOCH).unwrap();
        assert!(at("cluster.left-1/datastores/default").exists());
        assert!(at("cluster.left-1").join(HOST_ID).exists() && !at("cluster").exists());
    }
}

//! A server that was removed from its cluster begins anew, alone.

use std::io;
use std::path::Path;

use jiff::Timestamp;

use super::ClusterDir;

/// The server's id, beside the cluster's things while it is leaving.
pub const HOST_ID: &str = "host-id";

/// Puts everything of the cluster aside. The server's id goes along: the cluster has
/// shut it out for good, and under a new one it may join again.
pub fn leave(state_dir: &Path, now: Timestamp) -> io::Result<()> {
    let current = ClusterDir::current(state_dir).path();
    match std::fs::rename(state_dir.join(HOST_ID), current.join(HOST_ID)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let aside = state_dir.join(format!("cluster.left-{}", now.as_second()));
    std::fs::rename(current, aside)?;
    std::fs::File::open(state_dir)?.sync_all()
}

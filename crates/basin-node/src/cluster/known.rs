//! Where the other servers are, for when the store does not answer: etcd lets a server
//! that was removed in no more, and without it only the others can say why.

use std::io;
use std::net::SocketAddr;

use basin_model::HostId;
use serde::{Deserialize, Serialize};

use super::ClusterDir;
use crate::files;
use crate::pki::Material;
use crate::remote::{Peer, ask_whether_removed};

/// Another server of the cluster, when it was last heard of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownServer {
    pub host: HostId,
    pub address: SocketAddr,
}

impl ClusterDir {
    fn servers(&self) -> std::path::PathBuf {
        self.path().join("servers.json")
    }

    pub fn keep_servers(&self, servers: &[KnownServer]) -> io::Result<()> {
        let text = serde_json::to_vec(servers).map_err(io::Error::other)?;
        files::write(&self.servers(), &text, 0o600, None)
    }

    /// None is known to a server that has just joined.
    pub fn known_servers(&self) -> Vec<KnownServer> {
        let text = std::fs::read(self.servers()).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    fn removed(&self) -> std::path::PathBuf {
        self.path().join("removed")
    }

    /// From now on this server leaves at every start: the cluster has shut it out.
    pub fn note_removed(&self) -> io::Result<()> {
        files::write(&self.removed(), b"", 0o600, None)
    }

    pub fn is_removed(&self) -> bool {
        self.removed().exists()
    }
}

/// Whether a server of the cluster says that this one was removed. One that does not
/// know this server, or cannot be asked, says nothing.
pub async fn shut_out(dir: &ClusterDir, host: HostId, material: &Material) -> bool {
    let asked = dir.known_servers().into_iter().filter(|s| s.host != host).map(|server| {
        let pins = material.bundle().fingerprints();
        async move {
            for pin in pins {
                let peer = Peer::pinned(&server.address.to_string(), pin);
                if let Ok(true) = ask_whether_removed(&peer, host).await {
                    return true;
                }
            }
            false
        }
    });
    futures::future::join_all(asked).await.contains(&true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_read_as_it_was_written() {
        let state = tempfile::tempdir().unwrap();
        let dir = ClusterDir::current(state.path());
        assert!(dir.known_servers().is_empty() && !dir.is_removed());
        let host = HostId::from_uuid(uuid::Uuid::from_u128(3));
        let all = vec![KnownServer { host, address: "10.0.0.1:7443".parse().unwrap() }];
        dir.keep_servers(&all).unwrap();
        dir.note_removed().unwrap();
        assert_eq!(dir.known_servers(), all);
        assert!(dir.is_removed());
    }
}

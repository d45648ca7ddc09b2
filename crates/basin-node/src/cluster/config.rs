//! What a server of a cluster must know before it reaches the store.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use basin_model::HostId;
use basin_model::cluster::ExternalEtcd;
use basin_qemu::qemu::cgroup::MachineCgroup;
use basin_store::etcd::{EtcdIdentity, EtcdOptions, EtcdTls};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{ETCD_CLIENT_PORT, ETCD_PEER_PORT};
use crate::etcd::{Beginning, MemberConfig, MemberTls, Resident};
use crate::files;
use crate::pki::{Material, TlsDir};

/// `cluster.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterConfig {
    pub cluster: Uuid,
    /// Where the other servers reach this one.
    pub advertise: IpAddr,
    pub api_port: u16,
    /// That of the store: see `ClusterRecord`.
    #[serde(default)]
    pub epoch: u32,
    pub store: StoreConfig,
}

/// Where the store is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreConfig {
    /// etcd that Basin runs.
    Own {
        /// Where members answered when the store was last reached, the nearest first.
        endpoints: Vec<String>,
    },
    External(ExternalEtcd),
}

/// The directory of everything that makes a server one of a cluster.
#[derive(Debug, Clone)]
pub struct ClusterDir {
    state_dir: PathBuf,
    name: &'static str,
}

impl ClusterDir {
    /// The one in force: `STATE/cluster`.
    pub fn current(state_dir: &Path) -> ClusterDir {
        ClusterDir { state_dir: state_dir.to_owned(), name: "cluster" }
    }

    /// The one that is being made.
    pub fn next(state_dir: &Path) -> ClusterDir {
        ClusterDir { state_dir: state_dir.to_owned(), name: "cluster.next" }
    }

    pub fn path(&self) -> PathBuf {
        self.state_dir.join(self.name)
    }

    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    pub fn tls(&self) -> TlsDir {
        TlsDir::at(self.path().join("tls"))
    }

    /// Certificates that etcd no longer lets in, as a list signed by the CA.
    pub fn revoked(&self) -> PathBuf {
        self.path().join("tls").join("revoked.pem")
    }

    pub fn etcd(&self) -> PathBuf {
        self.path().join("etcd")
    }

    fn config(&self) -> PathBuf {
        self.path().join("cluster.json")
    }

    /// None outside of a cluster.
    pub fn load(&self) -> io::Result<Option<ClusterConfig>> {
        let path = self.config();
        let text = match std::fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read?,
        };
        serde_json::from_slice(&text).map(Some).map_err(|e| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{}: {e}", path.display()))
        })
    }

    /// etcd reads the list at every handshake: half of one would shut everybody out.
    pub fn store_revoked(&self, list: &str) -> io::Result<()> {
        files::write(&self.revoked(), list.as_bytes(), 0o600, None)
    }

    /// Secrets may be in it: it is root's alone.
    pub fn store(&self, config: &ClusterConfig) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(config).map_err(io::Error::other)?;
        files::write(&self.config(), &text, 0o600, None)
    }
}

impl ClusterConfig {
    /// Where to ask.
    pub fn etcd_options(&self, material: &Material) -> EtcdOptions {
        match &self.store {
            StoreConfig::Own { endpoints } => {
                EtcdOptions::new(endpoints.clone(), Some(cluster_tls(material)))
            }
            StoreConfig::External(external) => external_options(external),
        }
    }

    /// The member that this server has, may get or had; none of somebody else's etcd.
    pub fn resident(
        &self,
        host: HostId,
        dir: &ClusterDir,
        cgroup: Option<MachineCgroup>,
        stop: CancellationToken,
    ) -> Option<Resident> {
        match &self.store {
            StoreConfig::Own { .. } => {
                Some(Resident::new(member_config(host, self.advertise, dir), cgroup, stop))
            }
            StoreConfig::External(_) => None,
        }
    }

    /// Where a member of this server answers clients.
    pub fn own_endpoint(&self) -> String {
        etcd_url(self.advertise, ETCD_CLIENT_PORT)
    }
}

/// What this server's member would be, for taking away what one left.
pub fn no_member(host: HostId, config: &ClusterConfig, dir: &ClusterDir) -> MemberConfig {
    member_config(host, config.advertise, dir)
}

/// An etcd of somebody else's.
pub fn external_options(external: &ExternalEtcd) -> EtcdOptions {
    let identity = external.identity.as_ref().map(|(certificate, key)| EtcdIdentity {
        certificate: certificate.clone().into_bytes(),
        key: key.clone().into_bytes(),
    });
    let tls = external.ca.as_ref().map(|ca| EtcdTls { ca: ca.clone().into_bytes(), identity });
    EtcdOptions::new(external.endpoints.clone(), tls)
}

/// What this server shows to the cluster's etcd.
pub fn cluster_tls(material: &Material) -> EtcdTls {
    EtcdTls {
        ca: material.bundle().pem().into_bytes(),
        identity: Some(EtcdIdentity {
            certificate: material.chain_pem().as_bytes().to_vec(),
            key: material.key_pem().as_bytes().to_vec(),
        }),
    }
}

fn member_config(host: HostId, address: IpAddr, dir: &ClusterDir) -> MemberConfig {
    let tls = dir.tls();
    MemberConfig {
        program: "etcd".into(),
        name: host.to_string(),
        dir: dir.etcd(),
        address,
        client_port: ETCD_CLIENT_PORT,
        peer_port: ETCD_PEER_PORT,
        tls: Some(MemberTls {
            ca: tls.ca(),
            certificate: tls.server(),
            key: tls.server(),
            revoked: Some(dir.revoked()),
        }),
        // The resident knows better.
        beginning: Beginning::Join { others: Vec::new() },
    }
}

/// Where a server's member of etcd answers, at one of its two ports.
pub fn etcd_url(address: IpAddr, port: u16) -> String {
    format!("https://{}", std::net::SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read_as_it_was_written() {
        let state = tempfile::tempdir().unwrap();
        let dir = ClusterDir::current(state.path());
        assert_eq!(dir.load().unwrap(), None);
        let store = StoreConfig::Own { endpoints: vec!["https://a:2379".into()] };
        let advertise = "10.0.0.1".parse().unwrap();
        let config = ClusterConfig {
            cluster: Uuid::from_u128(7),
            advertise,
            api_port: 7443,
            epoch: 2,
            store,
        };
        dir.store(&config).unwrap();
        assert_eq!(dir.load().unwrap(), Some(config));
        std::fs::write(dir.config(), "{").unwrap();
        assert!(dir.load().unwrap_err().to_string().contains("cluster.json"));
    }
}

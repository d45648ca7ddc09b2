//! What is only there when several servers are one: who leads, who is alive, who may join.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::{HostId, TokenId};

/// The cluster itself. There is none while a server is alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// Tells clusters apart: a server never mixes the state of two.
    pub id: uuid::Uuid,
    pub formed_at: Timestamp,
    /// Grows when the state is restored from a backup: of two, the higher one counts.
    #[serde(default)]
    pub epoch: u32,
    /// Where etcd is that Basin does not run; none: it runs its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_etcd: Option<ExternalEtcd>,
    /// How long servers' certificates are good; none: a year.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_life: Option<Duration>,
}

/// An etcd that Basin only uses.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalEtcd {
    pub endpoints: Vec<String>,
    /// PEM; absent where it is reached without TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// Certificate and key as PEM, where etcd asks its clients for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<(String, String)>,
}

impl std::fmt::Debug for ExternalEtcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExternalEtcd").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

/// A server's certificate that the cluster's CA signed. Those of a removed server
/// are on the list of revoked ones until they expire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    pub host: HostId,
    /// Serial number, in hex.
    pub serial: String,
    pub expires_at: Timestamp,
}

/// The server whose controller decides. The record stands under that server's lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    pub host: HostId,
    pub elected_at: Timestamp,
}

/// That a server's daemon runs and reaches the store. Stands under its lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alive {
    pub host: HostId,
    pub since: Timestamp,
}

/// Lets one server join, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    pub id: TokenId,
    /// SHA-256 of the secret, in hex.
    pub secret_sha256: String,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    /// The server that it admitted. Kept until it expires, so that a second use
    /// is told from a wrong token.
    pub used_by: Option<HostId>,
}

/// A server that was removed. Its certificate is worth nothing, however long it lasts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedHost {
    pub host: HostId,
    pub name: String,
    pub at: Timestamp,
}

/// The cluster's certificate authority. The key signs servers' certificates; who
/// reads it is who may read the store: the servers.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authority {
    /// PEM.
    pub certificate: String,
    /// PEM, PKCS#8.
    pub key: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

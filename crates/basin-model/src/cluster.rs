//! What is only there when several servers are one: who leads, who is alive, who may join.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::{HostId, TokenId};

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

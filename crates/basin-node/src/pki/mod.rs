//! Who is who between servers: the cluster's certificate authority, each server's
//! certificate, and the trust that both ends of a connection ask for.
//!
//! A certificate names its server by id, as the URI `basin:host:UUID`; addresses and
//! names in it are for people's clients only. A server is let in if one of the
//! cluster's CAs signed it, its time is right, and the cluster has not removed it.

mod bundle;
mod ca;
mod credentials;
mod distrust;
mod facts;
mod files;
mod fingerprint;
mod keep;
mod material;
mod renew;
mod renew_expired;
mod request;
mod verify;

#[cfg(test)]
mod tests;

pub use bundle::Bundle;
pub use ca::{ClusterCa, Revoked, SERVER_LIFE};
pub use credentials::{Admit, Credentials, fixed_server, pinned_client};
pub use distrust::{Distrust, Spoken, spoken};
pub use facts::{Facts, PeerIdentity, facts, facts_of_chain};
pub use files::TlsDir;
pub use fingerprint::Fingerprint;
pub use keep::{Sign, keep_renewed};
pub use material::Material;
pub use renew::{Renewal, renewal};
pub use renew_expired::{check_expired, request_again};
pub use request::{Subject, request};

/// Marks requests that came over a connection with a server's certificate of this cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FromServer(pub basin_model::HostId);

/// Why a certificate or key could not be made, read or kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PkiError {
    #[error("{what} cannot be read: {why}")]
    Unreadable { what: String, why: String },
    /// What a server asked to have signed is not what it may have.
    #[error("the request for a certificate is refused: {0}")]
    Refused(String),
    #[error("{what} cannot be made: {why}")]
    Unmade { what: &'static str, why: String },
    #[error("{path}: {why}")]
    File { path: String, why: String },
}

impl PkiError {
    fn unreadable(what: &str, why: impl std::fmt::Display) -> PkiError {
        PkiError::Unreadable { what: what.to_owned(), why: why.to_string() }
    }
}

/// The one cryptography there is in Basin.
fn provider() -> std::sync::Arc<rustls::crypto::CryptoProvider> {
    std::sync::Arc::new(rustls::crypto::ring::default_provider())
}

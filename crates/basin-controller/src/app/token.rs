//! API tokens. The store keeps a hash of the secret, never the secret.

use basin_model::{Meta, TokenId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A token as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    pub id: TokenId,
    pub meta: Meta,
    /// SHA-256 of the secret, in hex. The secret has 256 random bits, so a plain
    /// hash cannot be searched; no salt or slow hash is needed.
    pub secret_sha256: String,
    pub expires_at: Option<Timestamp>,
}

impl Token {
    /// Whether it may still be used.
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|end| now < end)
    }
}

/// Makes a secret: `basin_` and 256 random bits in hex.
pub fn new_secret() -> String {
    format!("basin_{}", hex(&rand::random::<[u8; 32]>()))
}

/// What is kept of a secret.
pub fn hash(secret: &str) -> String {
    hex(&Sha256::digest(secret.as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

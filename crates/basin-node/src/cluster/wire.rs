//! Pure. What a joining server and the cluster say to each other. Fields that are
//! added later get `#[serde(default)]`: the two may be one release apart.

use std::net::IpAddr;
use std::path::PathBuf;

use basin_model::cluster::ExternalEtcd;
use basin_model::{Bytes, DatastoreId, HostId, Name};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Where a cluster's server takes such a question, from anybody who has a token.
pub const JOIN_PATH: &str = "/internal/v1/join";

/// Where it says whether the server whose id follows was removed: that one has no
/// certificate any more that it could show.
pub const REMOVED_PATH: &str = "/internal/v1/removed";

/// Whether it leads.
pub const LEADS_PATH: &str = "/internal/v1/leads";

/// Where it says which store it uses.
pub const STORE_PATH: &str = "/internal/v1/store";

/// Where it gives a new certificate to a server whose own has expired.
pub const RENEW_PATH: &str = "/internal/v1/renew";

/// A server whose certificate has expired asks for another one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RenewAsk {
    /// The old one, as PEM.
    pub certificate: String,
    /// For the same key, as PEM.
    pub csr: String,
}

/// It gets one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RenewAnswer {
    /// The certificate and the CA that signed it, as PEM.
    pub chain: String,
    /// Every CA that the cluster trusts, as PEM.
    pub bundle: String,
}

/// The store that a server uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreSeen {
    pub epoch: u32,
    pub endpoints: Vec<String>,
}

/// Clocks that differ by more would make certificates and leases of one server
/// expired or not yet valid on another.
pub const CLOCKS_DIFFER_AT_MOST: std::time::Duration = std::time::Duration::from_secs(300);

/// A server asks to be taken in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JoinAsk {
    /// The id of the token, and its secret.
    pub token: Uuid,
    pub secret: String,
    pub host: HostId,
    pub name: Name,
    pub address: IpAddr,
    pub api_port: u16,
    /// For this server's certificate, as PEM.
    pub csr: String,
    pub version: String,
    /// Of its QEMU; none where that cannot be used.
    #[serde(default)]
    pub qemu: Option<String>,
    pub clock: Timestamp,
    pub datastores: Vec<OwnDatastore>,
}

/// A datastore that the server brings along. What is in it stays.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OwnDatastore {
    pub id: DatastoreId,
    pub name: Name,
    pub description: String,
    pub path: PathBuf,
    #[serde(default)]
    pub quota: Option<Bytes>,
    pub overcommit_percent: u32,
}

/// It is.
#[derive(Clone, Serialize, Deserialize)]
pub struct JoinAnswer {
    pub cluster: Uuid,
    /// The server's certificate and the CA that signed it, as PEM.
    pub chain: String,
    /// Every CA that the cluster trusts, as PEM.
    pub bundle: String,
    /// The certificates that are revoked, as PEM.
    pub revoked: String,
    #[serde(default)]
    pub epoch: u32,
    pub store: JoinStore,
}

/// Where the cluster's store is.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JoinStore {
    Own { endpoints: Vec<String> },
    External(ExternalEtcd),
}

/// `basinjoin.ID.SECRET.FINGERPRINT`: who may join, and whom it joins.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    pub id: Uuid,
    pub secret: String,
    /// SHA-256 of the CA's certificate, in hex.
    pub ca: String,
}

const MARK: &str = "basinjoin";

impl std::fmt::Display for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{MARK}.{}.{}.{}", self.id.simple(), self.secret, self.ca)
    }
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinToken").field("id", &self.id).finish_non_exhaustive()
    }
}

impl std::str::FromStr for JoinToken {
    type Err = String;

    fn from_str(text: &str) -> Result<JoinToken, String> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [MARK, id, secret, ca] = parts[..] else {
            return Err("it is not a join token: those are basinjoin.ID.SECRET.CA, as \
                        'basin token create --join' prints them"
                .to_owned());
        };
        let whole = |text: &str, digits: usize| {
            text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit())
        };
        let id = Uuid::parse_str(id).map_err(|_| "its id is damaged".to_owned())?;
        if !whole(secret, 64) || !whole(ca, 64) {
            return Err("a part of it is missing or damaged: copy it whole".to_owned());
        }
        Ok(JoinToken { id, secret: secret.to_owned(), ca: ca.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_is_written_and_a_damaged_one_is_told() {
        let token =
            JoinToken { id: Uuid::from_u128(9), secret: "ab".repeat(32), ca: "cd".repeat(32) };
        let text = token.to_string();
        assert_eq!(format!(" {text}\n").parse(), Ok(token));
        let refused = |text: &str, why: &str| {
            let error = text.parse::<JoinToken>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        };
        refused(&text[..text.len() - 1], "copy it whole");
        refused(&text.replacen("ab", "zz", 1), "copy it whole");
        refused("basin_0123", "not a join token");
        refused(&text.replace("basinjoin.0", "basinjoin.x"), "id is damaged");
    }
}

//! Datastores: places that hold volumes and images.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::ids::{DatastoreId, HostId};
use crate::meta::Meta;
use crate::units::Bytes;

/// A datastore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datastore {
    pub id: DatastoreId,
    pub meta: Meta,
    #[serde(flatten)]
    pub sharing: Sharing,
    pub kind: DatastoreKind,
    /// At most this much of the file system is used; all of it when absent.
    pub quota: Option<Bytes>,
    /// How many times over the capacity may be promised to thin volumes, in percent.
    pub overcommit_percent: u32,
    #[serde(default)]
    pub state: DatastoreState,
}

impl Datastore {
    /// Twice the capacity: what is promised, not what is used, is seldom all needed.
    pub const DEFAULT_OVERCOMMIT_PERCENT: u32 = 200;
}

/// Which servers have a datastore. In JSON, `"host": ID` or `"shared": {"maker": ID}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sharing {
    /// One, alone.
    #[serde(rename = "host")]
    Local(HostId),
    /// Every server that sees the same storage at the datastore's path.
    Shared {
        /// The server that made it: the others are held against what it sees.
        maker: HostId,
    },
}

impl Sharing {
    /// Whether the server is meant to have it; it may still not reach it.
    pub fn includes(self, host: HostId) -> bool {
        match self {
            Sharing::Local(owner) => owner == host,
            Sharing::Shared { .. } => true,
        }
    }

    pub const fn is_shared(self) -> bool {
        matches!(self, Sharing::Shared { .. })
    }

    /// The server that it was made on.
    pub const fn maker(self) -> HostId {
        match self {
            Sharing::Local(host) | Sharing::Shared { maker: host } => host,
        }
    }
}

/// Where a datastore is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DatastoreState {
    /// Its maker has not marked the directory yet; that happens once.
    Preparing,
    /// The directory carries the mark. Where it does not, it is another one, or
    /// its file system is not mounted.
    #[default]
    Ready,
}

/// What a datastore is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum DatastoreKind {
    /// A directory of a mounted file system.
    Dir { path: PathBuf },
}

/// A datastore's space, as its server measures it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Capacity {
    /// The quota, or the file system's size.
    pub total: Bytes,
    /// What volumes and images occupy now.
    pub used: Bytes,
    /// What can still be written before the file system or the quota is full.
    pub free: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "0190a5f2-7c1e-7d3a-9b1f-2f6f0c9e4d11";

    fn record(sharing: &str) -> String {
        format!(
            r#"{{"id":"{HOST}","meta":{{"name":"fast","description":"","labels":{{}},"created_at":"2026-01-01T00:00:00Z"}},{sharing}"kind":{{"kind":"dir","path":"/srv"}},"quota":null,"overcommit_percent":200}}"#
        )
    }

    fn check(sharing: &str, expect: Sharing) {
        let read: Datastore = serde_json::from_str(&record(sharing)).unwrap();
        assert_eq!((read.sharing, read.state), (expect, DatastoreState::Ready));
        let written = serde_json::to_string(&read).unwrap();
        assert!(written.contains(sharing.trim_end_matches(',')), "{written}");
        assert_eq!(serde_json::from_str::<Datastore>(&written).unwrap(), read);
    }

    #[test]
    fn a_record_of_one_server_is_read_as_before() {
        let host: HostId = HOST.parse().unwrap();
        check(&format!(r#""host":"{HOST}","#), Sharing::Local(host));
        check(&format!(r#""shared":{{"maker":"{HOST}"}},"#), Sharing::Shared { maker: host });
        assert!(serde_json::from_str::<Datastore>(&record("")).is_err());
    }
}

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
    pub host: HostId,
    pub kind: DatastoreKind,
    /// At most this much of the file system is used; all of it when absent.
    pub quota: Option<Bytes>,
    /// How many times over the capacity may be promised to thin volumes, in percent.
    pub overcommit_percent: u32,
}

impl Datastore {
    /// Twice the capacity: what is promised, not what is used, is seldom all needed.
    pub const DEFAULT_OVERCOMMIT_PERCENT: u32 = 200;
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

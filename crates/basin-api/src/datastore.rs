//! Datastores.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::reference::{Labels, Meta, Reference};

/// A place that holds volumes and images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Datastore {
    #[serde(flatten)]
    pub meta: Meta,
    /// The server that alone has it; absent when it is shared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Reference>,
    /// Every server that sees the same storage at the path has it.
    #[serde(default)]
    pub shared: bool,
    /// The servers that are meant to have it.
    #[serde(default)]
    pub servers: Vec<DatastoreServer>,
    /// `dir`.
    pub kind: String,
    pub path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_bytes: Option<u64>,
    pub overcommit_percent: u32,
    /// Absent while no server reaches it; `problem` says why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub space: Option<Space>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Whether a server reaches a datastore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DatastoreServer {
    pub host: Reference,
    pub reaches: bool,
    /// Why it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A datastore's space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Space {
    pub total_bytes: u64,
    pub used_bytes: u64,
    pub free_bytes: u64,
    /// The sum of what volumes may grow to.
    pub provisioned_bytes: u64,
}

/// A datastore to make of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DatastoreCreate {
    pub name: String,
    #[serde(default)]
    pub description: String,
    #[serde(default)]
    pub labels: Labels,
    /// An absolute path on the server; made when absent.
    pub path: String,
    /// The server that makes it; the one that is asked when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Every server has the same storage mounted at this path, and may use it.
    #[serde(default)]
    pub shared: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_bytes: Option<u64>,
    /// How much may be promised to thin volumes, in percent of the capacity; 200 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overcommit_percent: Option<u32>,
}

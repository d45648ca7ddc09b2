//! Datastores.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::reference::{Labels, Meta, Reference};

/// A place that holds volumes and images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Datastore {
    #[serde(flatten)]
    pub meta: Meta,
    pub host: Reference,
    /// `dir`.
    pub kind: String,
    pub path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_bytes: Option<u64>,
    pub overcommit_percent: u32,
    /// Absent while the server cannot reach it; `problem` says why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub space: Option<Space>,
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_bytes: Option<u64>,
    /// How much may be promised to thin volumes, in percent of the capacity; 200 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overcommit_percent: Option<u32>,
}

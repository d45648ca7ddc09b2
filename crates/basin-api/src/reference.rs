//! What resources have in common.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Key-value pairs to select by.
pub type Labels = BTreeMap<String, String>;

/// What every resource carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Meta {
    /// A UUID; never changes.
    pub id: String,
    /// A DNS label, unique among its kind.
    pub name: String,
    pub description: String,
    pub labels: Labels,
    pub created_at: String,
    /// Grows with every change; the `ETag` is this number in quotes.
    pub revision: u64,
}

/// A thing, by id and by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reference {
    pub id: String,
    /// Absent when the thing is gone.
    pub name: Option<String>,
}

/// A list at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct List<T> {
    pub items: Vec<T>,
    /// Follow `/v1/events?after=REVISION` to hear of every later change.
    pub revision: u64,
}

/// A change to the descriptive part of a resource; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MetaPatch {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Merged into the labels; a null value removes the label.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Option<String>>,
}

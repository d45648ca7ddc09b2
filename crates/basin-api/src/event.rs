//! Server-sent events: every change to every resource, in order.
//!
//! Each event's `id:` is a revision; a client that reconnects with
//! `Last-Event-ID` misses nothing. `event: resync` says that the history asked
//! for is gone: list again, then follow from the list's revision.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    pub change: Change,
    /// `vm`, `volume`, `image`, `datastore`, `network`, `host`, `task` or `token`.
    pub kind: String,
    pub id: String,
    pub revision: u64,
    /// The resource as it is now, in the shape that a GET returns; absent when it
    /// was deleted, with this change or since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<serde_json::Value>,
}

/// What happened to the resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    Created,
    Updated,
    Deleted,
    /// The history that was asked for is gone: list again.
    Resync,
}

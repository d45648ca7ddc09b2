//! The other servers, as this one reaches them.

use std::sync::Arc;

use basin_model::HostId;

use crate::api::NodeApi;

/// Finds other servers.
pub trait Peers: Send + Sync + 'static {
    /// None for a server that is not known, or cannot be called.
    fn get(&self, host: HostId) -> Option<Arc<dyn NodeApi>>;
}

/// There are no others.
pub struct Alone;

impl Peers for Alone {
    fn get(&self, _: HostId) -> Option<Arc<dyn NodeApi>> {
        None
    }
}

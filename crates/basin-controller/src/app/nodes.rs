//! The servers, as the controller reaches them. One, in this process, so far.

use std::sync::Arc;

use basin_model::HostId;
use basin_model::task::Problem;
use basin_node::{NodeApi, NodeError};

use super::problems;

/// All servers.
#[derive(Clone)]
pub struct Nodes {
    local: HostId,
    node: Arc<dyn NodeApi>,
}

impl Nodes {
    pub fn single(local: HostId, node: Arc<dyn NodeApi>) -> Nodes {
        Nodes { local, node }
    }

    /// The server that this process runs on.
    pub fn local(&self) -> HostId {
        self.local
    }

    pub fn get(&self, host: HostId) -> Result<&dyn NodeApi, Problem> {
        if host == self.local {
            return Ok(&*self.node);
        }
        Err(problems::not_found("host", &host.to_string()))
    }
}

/// A server's refusal, as it is.
pub fn refused(e: NodeError) -> Problem {
    e.0
}

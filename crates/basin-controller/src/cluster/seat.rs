//! How this server stands: what the daemon does to become one of a cluster. The
//! daemon's wiring implements it; everything is restarted in the course of that.

use std::time::Duration;

use async_trait::async_trait;
use basin_model::task::Problem;
use basin_node::cluster::attempt::Failed;
use basin_node::cluster::found::Found;
use basin_node::cluster::join::Join;
use uuid::Uuid;

/// The daemon, as the application sees it.
#[async_trait]
pub trait Seat: Send + Sync + 'static {
    /// Begins to make this server the first of a cluster; the attempt's id.
    async fn found(&self, found: Found) -> Result<Uuid, Problem>;

    /// Asks a cluster to take this server in, and begins to act like it.
    async fn join(&self, join: Join) -> Result<Uuid, Problem>;

    /// How the last attempt failed.
    fn failed(&self) -> Option<Failed>;

    /// How the store is reached; None while it is a file of this server's.
    fn contact(&self) -> Option<StoreContact>;

    /// A backup of the cluster's state, as a file that has no name.
    async fn backup(&self) -> Result<std::fs::File, Problem>;

    /// The port of the API, which other servers are told.
    fn api_port(&self) -> Option<u16>;
}

/// How a store that several servers share is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreContact {
    /// The member in use.
    pub asks: Option<String>,
    /// What is known is at least as new as that.
    pub age: Duration,
    /// Why none answers.
    pub lost: Option<String>,
}

/// Of an application that has no daemon around it: tests.
pub struct Seatless;

#[async_trait]
impl Seat for Seatless {
    async fn found(&self, _: Found) -> Result<Uuid, Problem> {
        Err(crate::app::problems::invalid("this server cannot be one of a cluster"))
    }

    async fn join(&self, _: Join) -> Result<Uuid, Problem> {
        Err(crate::app::problems::invalid("this server cannot be one of a cluster"))
    }

    fn failed(&self) -> Option<Failed> {
        None
    }

    fn contact(&self) -> Option<StoreContact> {
        None
    }

    async fn backup(&self) -> Result<std::fs::File, Problem> {
        Err(crate::app::problems::no_cluster())
    }

    fn api_port(&self) -> Option<u16> {
        None
    }
}

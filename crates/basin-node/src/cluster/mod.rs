//! A server as a part of a cluster: what it keeps about that in its state directory,
//! and how it becomes one.
//!
//! - [`ClusterConfig`]: `STATE/cluster/cluster.json`. That `STATE/cluster` is there at
//!   all makes the server one of a cluster: it appears by a rename, whole.
//! - [`found`]: the first server's state enters etcd (`basin init`).
//! - [`join`]: another cluster is asked to take this server in (`basin join`).
//! - [`attempt`]: what was begun and not finished, and how the last attempt ended.
//! - [`follow`]: tends this server's member of etcd, and follows where all are.
//! - [`restore`]: the state comes from a backup, on one server; [`attach`]: the others
//!   follow.
//! - `authority`: the CA's key, where the state is kept anyway. `expired`: a new
//!   certificate for a server that comes back too late to ask for it as usual.
//! - `known`: where the other servers are, should the store not answer. [`leave`]:
//!   a server that was removed begins anew.
//! - [`wire`]: what a joining server and the cluster say to each other.

mod attach;
pub mod attempt;
mod authority;
mod config;
mod expired;
pub mod follow;
pub mod found;
pub mod join;
mod known;
pub mod leave;
pub mod restore;
pub mod wire;

pub use attach::{attach, newer_store};
pub use authority::KeptAuthority;
pub use config::{ClusterConfig, ClusterDir, StoreConfig, etcd_url, no_member};
pub use expired::{has_expired, renew_expired};
pub use known::{KnownServer, shut_out};

/// Where a member of etcd answers clients, and other members.
pub const ETCD_CLIENT_PORT: u16 = 2379;
pub const ETCD_PEER_PORT: u16 = 2380;

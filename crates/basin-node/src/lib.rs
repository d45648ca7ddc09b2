//! What happens on one server: keeps the VMs that it owns as the store says they should be.
//!
//! [`NodeApi`] is what the controller asks of a server; everything else a server
//! does follows from the store by itself: see `docs/reconcile.md`.

mod api;
mod blockd;
pub mod cluster;
mod config;
mod console;
mod datastores;
mod disks;
pub mod doctor;
pub mod etcd;
pub mod fault;
mod files;
mod host;
mod images;
mod lockfile;
pub mod migration;
mod networks;
mod node;
mod peers;
mod pidfd;
pub mod pki;
mod problem;
pub mod remote;
mod serve;
mod usage;
mod vms;

pub use api::{
    Chain, ConsoleIn, ConsoleLink, DiskUsage, HostUsage, NicUsage, NodeApi, NodeError, NodeUsage,
    VmUsage,
};
pub use config::{BlockdLauncher, BlockdMode, NodeConfig};
pub use disks::{DiskError, Disks, FakeDisks};
pub use lockfile::{StateLock, claim};
pub use node::LocalNode;
pub use peers::{Alone, Peers};

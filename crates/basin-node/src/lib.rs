//! What happens on one server: keeps the VMs that it owns as the store says they should be.
//!
//! [`NodeApi`] is what the controller asks of a server; everything else a server
//! does follows from the store by itself.

mod api;

pub use api::{
    Chain, ConsoleIn, ConsoleLink, DiskUsage, HostUsage, NicUsage, NodeApi, NodeError, NodeUsage,
    VmUsage,
};

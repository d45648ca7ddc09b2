//! Networks of one server: bridges, taps, NAT, DHCP and DNS (DESIGN D9).
//!
//! What should be ([`NetworkSpec`]) and what is ([`state`]) are compared by a pure
//! [`plan`]; only `linux` touches the kernel. [`Fabric`] is the seam.

mod confirm;
mod dnsmasq;
mod fabric;
pub mod fake;
pub mod linux;
mod names;
mod obstacles;
mod overlay;
mod plan;
mod rules;
mod spec;
mod state;
mod trunk;

pub use fabric::{
    Affected, Fabric, Lease, NetError, NetworkSpec, Overlay, SyncError, TapStats, Trunk, VXLAN_PORT,
};
pub use linux::{LinuxFabric, NetConfig};
pub use names::Instance;

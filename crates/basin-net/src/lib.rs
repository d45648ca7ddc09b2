//! Networks of one server: bridges, taps, NAT, DHCP and DNS (DESIGN D9).
//!
//! What should be ([`NetworkSpec`]) and what is are compared by a pure plan;
//! only `apply` touches the kernel. [`Fabric`] is the seam.

mod fabric;
pub mod fake;

pub use fabric::{Fabric, Lease, NetError, NetworkSpec, TapStats};

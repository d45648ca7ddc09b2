//! The seam between Basin and a server's networking.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use async_trait::async_trait;
use basin_model::{Bytes, MacAddr, NetworkId, NicId};
use ipnet::Ipv4Net;

/// A network as it should be on this server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSpec {
    pub id: NetworkId,
    pub subnet: Ipv4Net,
    /// The bridge's own address; also DHCP and DNS server.
    pub gateway: Ipv4Addr,
    /// VMs are `NAME.DOMAIN`.
    pub domain: String,
    /// In any order.
    pub leases: Vec<Lease>,
}

/// What DHCP answers and DNS knows about one interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lease {
    pub mac: MacAddr,
    pub address: Ipv4Addr,
    /// A DNS label.
    pub name: String,
}

/// Counters of a tap, from the guest's point of view.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TapStats {
    pub received: Bytes,
    pub received_packets: u64,
    pub sent: Bytes,
    pub sent_packets: u64,
}

/// Why the network is not as it should be. Written for the operator.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The subnet overlaps a route the server already has.
    #[error("subnet {subnet} overlaps {with}, which this server already reaches through {device}")]
    Overlap { subnet: Ipv4Net, with: Ipv4Net, device: String },
    /// A program that networks need is not there.
    #[error("{program} is not installed: {advice}")]
    Missing { program: &'static str, advice: &'static str },
    /// The kernel or a program refused.
    #[error("{what}: {why}")]
    Refused { what: String, why: String },
    #[error("network {0} is not on this server")]
    NoNetwork(NetworkId),
}

/// A server's networks.
#[async_trait]
pub trait Fabric: Send + Sync + 'static {
    /// Makes the server have exactly these networks. Idempotent; taps of networks
    /// that stay are untouched, and what other software made is never touched.
    async fn sync(&self, networks: &[NetworkSpec]) -> Result<(), NetError>;

    /// Whether a network with this subnet could be made here.
    async fn check(&self, subnet: Ipv4Net) -> Result<(), NetError>;

    /// A tap on the network's bridge, open for a machine to use. The tap lives as
    /// long as it is open or until [`Fabric::close_tap`]. Anti-spoofing: frames
    /// that the guest sends with another source MAC or IPv4 address are dropped.
    async fn open_tap(
        &self,
        network: NetworkId,
        nic: NicId,
        mac: MacAddr,
        address: Ipv4Addr,
    ) -> Result<OwnedFd, NetError>;

    /// Removes the tap. Idempotent.
    async fn close_tap(&self, nic: NicId) -> Result<(), NetError>;

    async fn tap_stats(&self, nic: NicId) -> Option<TapStats>;
}

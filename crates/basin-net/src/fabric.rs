//! The seam between Basin and a server's networking.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use async_trait::async_trait;
use basin_model::network::Vni;
use basin_model::vlan::{LinkName, VlanId};
use basin_model::{Bytes, MacAddr, NetworkId, NicId};
use ipnet::Ipv4Net;

/// A network as it should be on this server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSpec {
    pub id: NetworkId,
    pub subnet: Ipv4Net,
    /// The bridge's own address; DHCP and DNS server, and the guests' router unless the
    /// network has a trunk.
    pub gateway: Ipv4Addr,
    /// VMs are `NAME.DOMAIN`.
    pub domain: String,
    /// In any order.
    pub leases: Vec<Lease>,
    /// None: a network of this server alone, or of a VLAN.
    pub overlay: Option<Overlay>,
    /// Of a network that is a VLAN of the physical one. Never with an overlay.
    pub trunk: Option<Trunk>,
}

impl NetworkSpec {
    /// This server's address in [`Lease::at`] and [`Lease::to`].
    pub fn local(&self) -> Option<Ipv4Addr> {
        let overlay = self.overlay.as_ref().map(|o| o.local);
        overlay.or_else(|| self.trunk.as_ref()?.local)
    }
}

/// How a network is a VLAN: frames leave by an interface of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trunk {
    pub vlan: VlanId,
    /// None: this server has none. Its guests reach each other only.
    pub device: Option<LinkName>,
    /// Whether frames have the VLAN's tag there. Otherwise the interface is the VLAN's
    /// alone.
    pub tagged: bool,
    /// The guests' router, a machine of the physical network.
    pub router: Ipv4Addr,
    /// The largest packet of a guest.
    pub mtu: u32,
    /// None: no other server has guests of Basin's.
    pub local: Option<Ipv4Addr>,
}

/// How a network spans servers: Ethernet frames in UDP between their addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    pub vni: Vni,
    /// Where other servers reach this one.
    pub local: Ipv4Addr,
    pub port: u16,
    /// Where this server reaches the others: frames from anywhere else are dropped.
    pub peers: BTreeSet<Ipv4Addr>,
    /// The largest packet of a guest, the same on every server.
    pub mtu: u32,
}

/// The port that VXLAN has from RFC 7348.
pub const VXLAN_PORT: u16 = 4789;

/// What DHCP answers and DNS knows about one interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lease {
    pub mac: MacAddr,
    pub address: Ipv4Addr,
    /// A DNS label.
    pub name: String,
    /// The overlay address of the server where the interface is now. None: here, or nowhere.
    pub at: Option<Ipv4Addr>,
    /// The overlay address of the server that its machine is moving to while it runs;
    /// this server's own when it comes here.
    pub to: Option<Ipv4Addr>,
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

/// Why the server has not exactly the networks that are wanted. The others stand.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct SyncError {
    pub affected: Affected,
    /// The first thing that went wrong.
    pub error: NetError,
}

/// Which networks are not known to be as they should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Affected {
    All,
    /// Possibly none: what went wrong keeps no network of this server from its guests.
    Only(BTreeSet<NetworkId>),
}

impl From<NetError> for SyncError {
    fn from(error: NetError) -> SyncError {
        SyncError { affected: Affected::All, error }
    }
}

/// A server's networks.
#[async_trait]
pub trait Fabric: Send + Sync + 'static {
    /// Makes the server have exactly these networks. Idempotent; taps of networks
    /// that stay are untouched, and what other software made is never touched.
    async fn sync(&self, networks: &[NetworkSpec]) -> Result<(), SyncError>;

    /// The largest packet of a guest that can go to other servers from here, when
    /// they reach this one at `local`. None where no interface has that address.
    async fn overlay_mtu(&self, local: Ipv4Addr) -> Option<u32>;

    /// The largest packet of a guest that this interface carries in a VLAN, or why it
    /// carries none.
    async fn trunk_mtu(&self, trunk: &basin_model::vlan::Trunk) -> Result<u32, NetError>;

    /// Whether a network with this subnet could be made here.
    async fn check(&self, subnet: Ipv4Net) -> Result<(), NetError>;

    /// A tap on the network's bridge, open for a machine to use. The tap lives as
    /// long as it is open or until [`Fabric::close_tap`]. Anti-spoofing: frames
    /// that the guest sends with another source MAC or IPv4 address are dropped.
    ///
    /// What the tap does follows from the network's lease of this MAC, at the time and
    /// at each later sync: of a machine that is on its way here it is quiet until the
    /// guest's first frame, and of one that is elsewhere it carries nothing.
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

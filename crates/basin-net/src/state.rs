//! Pure. What of a server's networking matters to Basin, as it was found.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use basin_model::{MacAddr, NetworkId};
use ipnet::Ipv4Net;

use crate::names::{GROUP, Instance, TapOwner};
use crate::rules::Ruleset;

/// A server's networking.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    pub links: BTreeMap<String, Link>,
    /// IPv4 routes of every table, those of the server's own addresses too.
    pub routes: Vec<Route>,
    /// Those of the [table of answers](crate::trunk::TABLE), which are no others' way.
    pub answer_routes: BTreeSet<Route>,
    /// Addresses from which the server looks for its way in that table.
    pub answer_rules: BTreeSet<Ipv4Addr>,
    pub firewall: Firewall,
    pub forwarding: Forwarding,
    /// By network, whatever has a directory or a process.
    pub services: BTreeMap<NetworkId, Service>,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub kind: LinkKind,
    pub group: u32,
    pub alias: String,
    pub up: bool,
    pub mtu: u32,
    pub mac: Option<MacAddr>,
    /// The bridge this is a port of, by index.
    pub master: Option<u32>,
    pub addresses: BTreeSet<Ipv4Net>,
    /// Only those of Basin's own interfaces are read.
    pub sysctls: BTreeMap<Sysctl, u8>,
    /// As a port of a bridge: addresses that the bridge sends here. The port's own
    /// is left out.
    pub entries: BTreeMap<MacAddr, Entry>,
    /// As a VXLAN port: where frames for an address go.
    pub forwards: BTreeSet<Forward>,
}

/// How a bridge holds an address at a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// From frames that came in there; forgotten after a while.
    Learned,
    /// Kept until a frame from elsewhere on the bridge moves it.
    Fixed,
    /// Kept, and no frame moves it.
    Sticky,
}

/// Where a VXLAN port sends frames for an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Forward {
    /// [`FLOOD`] for what is for all, or for nobody known.
    pub mac: MacAddr,
    pub to: Ipv4Addr,
    /// Frames that come from another server do not move it and are dropped.
    pub fixed: bool,
}

/// The address under which a VXLAN port knows whom to send what is for all.
pub const FLOOD: MacAddr = MacAddr([0; 6]);

/// What an interface is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    Bridge(BridgeSettings),
    /// A tap; as a port of a bridge it learns and floods or not.
    Tap(PortSettings),
    Vxlan(VxlanSettings, PortSettings),
    Vlan(VlanSettings, PortSettings),
    Other,
}

/// What a VXLAN port is made with; another is another port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VxlanSettings {
    pub vni: u32,
    pub local: Option<Ipv4Addr>,
    pub port: u16,
    pub learning: bool,
}

/// What a VLAN port is made with; another is another port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VlanSettings {
    pub vlan: u16,
    /// The interface whose frames have the tag, by index.
    pub parent: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BridgeSettings {
    pub stp: bool,
    /// In hundredths of a second.
    pub forward_delay: u32,
    pub multicast_snooping: bool,
    /// Whether frames that no rule sees (LLDP) teach it addresses.
    pub link_local_learning: bool,
}

impl BridgeSettings {
    /// No loops are possible, so no waiting; guests' group memberships are not tracked.
    pub const WANTED: BridgeSettings = BridgeSettings {
        stp: false,
        forward_delay: 0,
        multicast_snooping: false,
        link_local_learning: false,
    };
}

/// What a port teaches its bridge, and whether it gets frames for unknown addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortSettings {
    pub learning: bool,
    pub flood: bool,
}

impl PortSettings {
    /// The guest's address is an entry of the bridge: nothing it sends moves it.
    pub const GUEST: PortSettings = PortSettings { learning: false, flood: false };
    /// A guest that may begin to run here at any moment: its first frame tells. Rules
    /// hold it to its own address.
    pub const ARRIVING: PortSettings = PortSettings { learning: true, flood: false };
    /// What is not here is elsewhere. It learns, since a guest that has left tells so
    /// by a frame from there; entries of guests that stay are sticky.
    pub const OVERLAY: PortSettings = PortSettings { learning: true, flood: true };
    /// The same of a VLAN: who is there is known from frames only.
    pub const TRUNK: PortSettings = PortSettings { learning: true, flood: true };
}

/// A kernel setting of one interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sysctl {
    DisableIpv6,
    Forwarding,
    SendRedirects,
    AcceptRedirects,
    ArpIgnore,
    RpFilter,
}

impl Sysctl {
    /// First IPv6 off, so that a bridge never speaks it; forwarding last.
    pub const BRIDGE: [(Sysctl, u8); 6] = [
        (Sysctl::DisableIpv6, 1),
        (Sysctl::SendRedirects, 0),
        (Sysctl::AcceptRedirects, 0),
        (Sysctl::ArpIgnore, 1),
        (Sysctl::RpFilter, 1),
        (Sysctl::Forwarding, 1),
    ];
    /// Where the server is no router: nothing is forwarded. Answers go by a table of
    /// their own, which the check of senders (RFC 3704) looks at as well.
    pub const VLAN_BRIDGE: [(Sysctl, u8); 6] = [
        (Sysctl::DisableIpv6, 1),
        (Sysctl::SendRedirects, 0),
        (Sysctl::AcceptRedirects, 0),
        (Sysctl::ArpIgnore, 1),
        (Sysctl::RpFilter, 1),
        (Sysctl::Forwarding, 0),
    ];
    /// Of taps, VXLAN and VLAN ports.
    pub const PORT: [(Sysctl, u8); 1] = [(Sysctl::DisableIpv6, 1)];

    /// Under `/proc/sys/net`.
    pub fn path(self, device: &str) -> String {
        let (family, key) = match self {
            Sysctl::DisableIpv6 => ("ipv6", "disable_ipv6"),
            Sysctl::Forwarding => ("ipv4", "forwarding"),
            Sysctl::SendRedirects => ("ipv4", "send_redirects"),
            Sysctl::AcceptRedirects => ("ipv4", "accept_redirects"),
            Sysctl::ArpIgnore => ("ipv4", "arp_ignore"),
            Sysctl::RpFilter => ("ipv4", "rp_filter"),
        };
        format!("{family}/conf/{device}/{key}")
    }
}

impl Link {
    /// Whether this daemon made it: a name anybody could take is not enough.
    pub fn is_own_bridge(&self, name: &str, instance: &Instance) -> bool {
        matches!(self.kind, LinkKind::Bridge(_))
            && self.group == GROUP
            && name.starts_with(&instance.bridge_prefix())
    }

    pub fn is_own_overlay(&self, name: &str, instance: &Instance) -> bool {
        matches!(self.kind, LinkKind::Vxlan(..))
            && self.group == GROUP
            && name.starts_with(&instance.overlay_prefix())
    }

    pub fn is_own_trunk(&self, name: &str, instance: &Instance) -> bool {
        matches!(self.kind, LinkKind::Vlan(..))
            && self.group == GROUP
            && name.starts_with(&instance.trunk_prefix())
    }

    /// Whose tap this is, if this daemon made it.
    pub fn own_tap(&self, name: &str, instance: &Instance) -> Option<TapOwner> {
        let owner = TapOwner::from_alias(&self.alias)?;
        let own = matches!(self.kind, LinkKind::Tap(_)) && name == instance.tap(owner.nic);
        own.then_some(owner)
    }
}

/// A route: what the server reaches, and through which interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub to: Ipv4Net,
    /// None for blackholes and their like.
    pub device: Option<String>,
    /// In the table of the server's own and broadcast addresses.
    pub local: bool,
}

/// This daemon's tables.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Firewall {
    #[default]
    Absent,
    /// There are tables, and what is in them is not known to be right.
    Unknown,
    /// Exactly this was loaded and nothing changed since.
    Loaded(Ruleset),
}

/// Which interfaces forward IPv4.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// `net.ipv4.ip_forward`.
    pub global: bool,
    /// Interfaces that do.
    pub on: BTreeSet<String>,
    /// Those of them that Basin turned on, as recorded.
    pub recorded: BTreeSet<String>,
}

/// DHCP and DNS of one network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    pub process: Option<Process>,
    pub hosts: Option<Hosts>,
    /// Whether the process has read `hosts`.
    pub hosts_loaded: bool,
    /// What DHCP has handed out and holds to.
    pub bindings: BTreeSet<Binding>,
}

/// A running dnsmasq.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub arguments: Vec<String>,
    /// The bridge it is bound to, by index: a new bridge of the same name is another.
    pub bridge: u32,
}

/// The files that dnsmasq reads again on a signal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hosts {
    pub dhcp: String,
    pub dns: String,
}

/// One line of dnsmasq's lease file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Binding {
    pub mac: MacAddr,
    pub address: Ipv4Addr,
    /// The DHCP client identifier, when the guest sent one.
    pub client: Option<Vec<u8>>,
}

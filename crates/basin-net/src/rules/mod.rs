//! Pure. The nftables ruleset of one daemon, as text for `nft -f`.
//!
//! Two tables, both replaced as a whole in one transaction. The bridge table
//! holds each guest to its own MAC and IPv4 address, and keeps the gateway and DHCP
//! of each server on that server, of VLANs as well; the inet table keeps the networks apart, hides the
//! server's own services, translates addresses, and hears other servers only.
//! Rules name interfaces by text, so they are in force before an interface is up.

mod bridge;
mod inet;
mod sets;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::Ipv4Addr;

use basin_model::MacAddr;
use basin_model::network::Vni;
use ipnet::Ipv4Net;

use crate::names::{Instance, TapOwner};

/// Whether a foreign interface's name means just itself inside a ruleset.
pub fn quotable(device: &str) -> bool {
    !device.is_empty()
        && device.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Drops both tables, whether or not they exist.
pub fn removal(instance: &Instance) -> String {
    let table = instance.table();
    let mut out = String::new();
    for family in ["bridge", "inet"] {
        // Adding first makes the deletion succeed when there was none.
        let _ = writeln!(out, "add table {family} {table}\ndelete table {family} {table}");
    }
    out
}

/// What the tables say, apart from what they always say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    pub networks: BTreeSet<Guarded>,
    /// Taps by name, and whom each is held to.
    pub taps: BTreeSet<(String, TapOwner)>,
    /// Interfaces on which Basin turned forwarding on: the server routes from them
    /// to guests and nowhere else.
    pub uplinks: BTreeSet<String>,
    /// By VXLAN port, whose frames may come from other servers.
    pub heard: BTreeMap<String, BTreeSet<(MacAddr, Ipv4Addr)>>,
    /// By VLAN port, guests that are here: nothing from there is of them.
    pub kept: BTreeMap<String, BTreeSet<(MacAddr, Ipv4Addr)>>,
    /// Other servers, each with this server's address that it speaks to.
    pub peers: BTreeSet<(Ipv4Addr, Ipv4Addr)>,
}

/// A network as the rules know it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Guarded {
    pub bridge: String,
    pub subnet: Ipv4Net,
    pub gateway: Ipv4Addr,
    /// The gateway's MAC address.
    pub mac: MacAddr,
    pub overlay: Option<Span>,
    /// The port to its VLAN, whether or not it is there.
    pub trunk: Option<String>,
}

/// A network's way to other servers, as the rules know it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    pub device: String,
    pub vni: Vni,
    pub local: Ipv4Addr,
    pub port: u16,
}

impl Ruleset {
    /// Replaces both tables.
    pub fn text(&self, instance: &Instance) -> String {
        let mut out = removal(instance);
        bridge::table(&mut out, instance, self);
        inet::table(&mut out, instance, self);
        out
    }

    /// Makes these rules of `old` ones where only elements of sets differ: taps,
    /// interfaces elsewhere, servers. Replacing tables makes the kernel wait until no
    /// packet is in them; on the way of a machine's start that is too long.
    pub fn change(&self, old: &Ruleset, instance: &Instance) -> Option<String> {
        let same = self.networks == old.networks && self.uplinks == old.uplinks;
        same.then(|| sets::changes(old, self, instance))
    }

    fn trunks(&self) -> impl Iterator<Item = (&Guarded, &String)> {
        self.networks.iter().filter_map(|n| Some((n, n.trunk.as_ref()?)))
    }

    fn spans(&self) -> impl Iterator<Item = (&Guarded, &Span)> {
        self.networks.iter().filter_map(|n| Some((n, n.overlay.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_names_cannot_change_the_ruleset() {
        for (name, expect) in [("eth0", true), ("eth0.5", true), ("a\"b", false), ("eth*", false)] {
            assert_eq!(quotable(name), expect, "{name}");
        }
        let instance = Instance::new("a").unwrap();
        let guarded = BTreeSet::from(["eth*".to_owned(), "eth1".to_owned()]);
        let text = Ruleset { uplinks: guarded, ..Ruleset::default() }.text(&instance);
        assert!(text.contains("elements = { \"eth1\" }"));
        assert!(!text.contains("eth*"));
    }
}

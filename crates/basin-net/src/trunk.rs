//! Pure. A network that is a VLAN of the physical network: what of this server's
//! interfaces can carry it, and which guests are never heard from there.
//!
//! The server takes no part in such a network but for DHCP and DNS of its own guests.
//! Its address there is a /32 without a route of its own, so that how the server itself
//! reaches that subnet (by its router, or by another interface) stays as it was. What
//! it says *from* that address is found by a rule and a table of routes.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use basin_model::MacAddr;

use crate::fabric::{NetError, NetworkSpec};
use crate::names::{GROUP, Instance};
use crate::overlay::Stance;
use crate::state::{Link, LinkKind, Observed};

/// The table of routes of answers to guests. Every daemon's: its routes go with their
/// bridges, and its rules are told apart by their addresses.
pub const TABLE: u32 = 0xba51;

/// Before the tables of the server's own routes, and behind that of its addresses.
pub const PRIORITY: u32 = 996;

/// The largest packet that a guest can send by this interface, or why none.
pub fn mtu(
    instance: &Instance,
    observed: &Observed,
    device: &str,
    tagged: bool,
) -> Result<u32, NetError> {
    let refuse =
        |why: String| Err(NetError::Refused { what: format!("trunk interface {device}"), why });
    match observed.links.get(device) {
        None => refuse("there is no such interface on this server".into()),
        Some(link) if link.group == GROUP => refuse("it is one of Basin's own".into()),
        Some(link) if link.mac.is_none() => refuse("it is no Ethernet interface".into()),
        Some(link) if !tagged && !link.addresses.is_empty() => {
            let all: Vec<String> = link.addresses.iter().map(ToString::to_string).collect();
            refuse(format!(
                "it has addresses of this server ({}), which nobody would reach there any more: \
                 name an interface that is for guests alone, or have the VLAN tagged",
                all.join(", ")
            ))
        }
        Some(link) if !tagged && !free(instance, observed, link) => {
            refuse("it is part of another bridge or bond already".into())
        }
        Some(link) => Ok(link.mtu),
    }
}

/// Whether an interface is nobody's part, or that of a bridge of this daemon.
fn free(instance: &Instance, observed: &Observed, link: &Link) -> bool {
    let Some(master) = link.master else { return true };
    let found = observed.links.iter().find(|(_, l)| l.index == master);
    found.is_some_and(|(name, l)| l.is_own_bridge(name, instance))
}

/// The port of a network's bridge to its VLAN.
pub fn port(instance: &Instance, network: &NetworkSpec) -> Option<String> {
    let trunk = network.trunk.as_ref()?;
    match &trunk.device {
        Some(device) if !trunk.tagged => Some(device.to_string()),
        _ => Some(instance.trunk(network.id)),
    }
}

/// Why this server cannot have its guests on the VLAN by the interface that is named.
pub fn unfit(instance: &Instance, network: &NetworkSpec, observed: &Observed) -> Option<NetError> {
    let trunk = network.trunk.as_ref()?;
    let what = || format!("network {} (VLAN {})", network.id, trunk.vlan);
    let refuse = |why: String| Some(NetError::Refused { what: what(), why });
    let device = trunk.device.as_ref()?;
    let most = match mtu(instance, observed, device.as_str(), trunk.tagged) {
        Err(NetError::Refused { what, why }) => return refuse(format!("{what}: {why}")),
        Err(e) => return Some(e),
        Ok(most) => most,
    };
    if most < trunk.mtu {
        let needs = trunk.mtu;
        return refuse(format!(
            "its guests send packets of up to {needs} bytes and {device} carries {most}: raise \
             the MTU of {device}"
        ));
    }
    if !trunk.tagged {
        return None;
    }
    let parent = observed.links.get(device.as_str()).map(|l| l.index);
    let own = instance.trunk(network.id);
    let same = |l: &Link| matches!(l.kind, LinkKind::Vlan(v, _) if v.vlan == trunk.vlan.get() && Some(v.parent) == parent);
    let other = observed.links.iter().find(|(name, l)| **name != own && same(l));
    other.and_then(|(name, _)| {
        refuse(format!(
            "interface {name} of this server has that VLAN of {device} already; remove it, or \
             move what it is for to another interface"
        ))
    })
}

/// Guests that are here and stay: frames that say to be of them never come from outside.
pub fn kept<'a>(
    network: &'a NetworkSpec,
    taps: impl Iterator<Item = (MacAddr, Ipv4Addr)> + 'a,
) -> BTreeSet<(MacAddr, Ipv4Addr)> {
    taps.filter(|(mac, _)| Stance::of_mac(network, *mac) == Stance::Here).collect()
}

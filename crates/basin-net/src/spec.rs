//! Pure. Which networks can be made: sound in themselves, apart from each other
//! and from what the server already reaches.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use basin_model::NetworkId;
use ipnet::Ipv4Net;

use crate::fabric::{Lease, NetError, NetworkSpec, Trunk};
use crate::names::{Instance, bridge_mac};
use crate::overlay;
use crate::state::{Link, LinkKind, Observed};
use crate::trunk;

pub fn overlap(a: &Ipv4Net, b: &Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// Whether text is one DNS label; anything else could mean more inside a file.
fn label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn domain(text: &str) -> bool {
    text.len() <= 200 && text.split('.').all(label)
}

/// Whether a machine may have this address.
pub fn usable(subnet: &Ipv4Net, address: &Ipv4Addr) -> bool {
    subnet.contains(address) && *address != subnet.network() && *address != subnet.broadcast()
}

/// What is wrong with a network in itself.
pub fn validate(network: &NetworkSpec) -> Result<(), NetError> {
    let refuse =
        |why: String| Err(NetError::Refused { what: format!("network {}", network.id), why });
    let NetworkSpec { subnet, gateway, .. } = network;
    if !(8..=29).contains(&subnet.prefix_len()) || subnet.addr() != subnet.network() {
        return refuse(format!("subnet {subnet} is not a network of /8 to /29"));
    }
    let first = subnet.network();
    if first.is_loopback()
        || first.is_multicast()
        || first.octets()[0] == 0
        || first.octets()[0] >= 240
    {
        return refuse(format!("subnet {subnet} holds addresses that no machine may have"));
    }
    if !usable(subnet, gateway) {
        return refuse(format!("gateway {gateway} is not an address inside {subnet}"));
    }
    if let Some(trunk) = &network.trunk
        && (!usable(subnet, &trunk.router) || trunk.router == *gateway)
    {
        let router = trunk.router;
        return refuse(format!("router {router} is not another address inside {subnet}"));
    }
    if !domain(&network.domain) {
        return refuse(format!("'{}' is not a DNS domain", network.domain));
    }
    Ok(())
}

/// What cannot be done, and the network that is not as it should be because of it.
pub type Refusal = (Option<NetworkId>, NetError);

/// The leases that can be served, in order, and why not the others: one bad name must
/// not take a network down.
fn sound_leases(network: &NetworkSpec) -> (Vec<Lease>, Vec<NetError>) {
    let NetworkSpec { subnet, gateway, .. } = network;
    let (mut macs, mut addresses) = (BTreeSet::new(), BTreeSet::from([*gateway]));
    addresses.extend(network.trunk.as_ref().map(|t| t.router));
    let (mut good, mut refused) = (Vec::new(), Vec::new());
    let mut sorted = network.leases.clone();
    sorted.sort();
    for lease in sorted {
        let why = if !label(&lease.name) {
            "its name is not a DNS label".to_owned()
        } else if !usable(subnet, &lease.address) {
            format!("{} is not an address for machines inside {subnet}", lease.address)
        } else if lease.mac == bridge_mac(network.id) || !macs.insert(lease.mac) {
            format!("the MAC address {} is taken", lease.mac)
        } else if !addresses.insert(lease.address) {
            format!("the address {} is taken", lease.address)
        } else {
            good.push(lease);
            continue;
        };
        let what = format!("'{}' on network {}", lease.name, network.id);
        refused.push(NetError::Refused { what, why });
    }
    (good, refused)
}

/// Whether the server already reaches part of `subnet` by something that this
/// daemon did not make. Default routes, also those of VPNs that split the default
/// in halves, are no overlap.
pub fn overlaps_server(
    instance: &Instance,
    observed: &Observed,
    subnet: &Ipv4Net,
) -> Result<(), NetError> {
    let foreign = |device: &Option<String>| match device {
        Some(name) => !observed.links.get(name).is_some_and(|l| l.is_own_bridge(name, instance)),
        None => true,
    };
    let found = observed
        .routes
        .iter()
        .filter(|r| r.to.prefix_len() > 1 && overlap(&r.to, subnet) && foreign(&r.device))
        // The widest one is what an operator knows it by.
        .min_by_key(|r| (r.local, r.to.prefix_len(), r.to));
    match found {
        None => Ok(()),
        Some(route) => Err(NetError::Overlap {
            subnet: *subnet,
            with: route.to,
            device: route.device.clone().unwrap_or_else(|| "a route without an interface".into()),
        }),
    }
}

/// Whether a subnet is free here, also of this daemon's own networks.
pub fn check(instance: &Instance, observed: &Observed, subnet: &Ipv4Net) -> Result<(), NetError> {
    overlaps_server(instance, observed, subnet)?;
    for (name, link) in &observed.links {
        if !link.is_own_bridge(name, instance) {
            continue;
        }
        if let Some(with) = link.addresses.iter().find(|a| overlap(a, subnet)) {
            return Err(NetError::Overlap {
                subnet: *subnet,
                with: with.trunc(),
                device: name.clone(),
            });
        }
    }
    Ok(())
}

/// The networks that can be made, in order of their ids, and why not the others.
pub fn accept(
    instance: &Instance,
    wanted: &[NetworkSpec],
    observed: &Observed,
) -> (Vec<NetworkSpec>, Vec<Refusal>) {
    let mut sorted: Vec<&NetworkSpec> = wanted.iter().collect();
    // Networks that stand go first: a new one never displaces them.
    let stands = |n: &NetworkSpec| {
        let name = instance.bridge(n.id);
        observed
            .links
            .get(&name)
            .is_some_and(|l| l.is_own_bridge(&name, instance) && l.addresses.contains(&address(n)))
    };
    sorted.sort_by_key(|n| (!stands(n), n.id));
    let (mut accepted, mut refused): (Vec<NetworkSpec>, Vec<Refusal>) = (vec![], vec![]);
    for network in sorted {
        match fits(instance, network, &accepted, observed, stands(network)) {
            Ok(()) => {
                let (leases, bad) = sound_leases(network);
                refused.extend(bad.into_iter().map(|e| (Some(network.id), e)));
                let unfit =
                    network.overlay.as_ref().and_then(|o| overlay::unfit(network, o, observed));
                let overlay = network.overlay.clone().filter(|_| unfit.is_none());
                // Its guests are served all the same.
                refused.extend(unfit.map(|e| (None, e)));
                let mut trunk = network.trunk.clone();
                if let Some(e) = trunk::unfit(instance, network, observed) {
                    // So are those that are here. None is to start here.
                    refused.push((Some(network.id), e));
                    trunk = trunk.map(|t| Trunk { device: None, ..t });
                }
                accepted.push(NetworkSpec { leases, overlay, trunk, ..network.clone() });
            }
            Err(e) => refused.push((Some(network.id), e)),
        }
    }
    accepted.sort_by_key(|n| n.id);
    (accepted, refused)
}

fn fits(
    instance: &Instance,
    network: &NetworkSpec,
    accepted: &[NetworkSpec],
    observed: &Observed,
    stands: bool,
) -> Result<(), NetError> {
    validate(network)?;
    let name = instance.bridge(network.id);
    if let Some(other) = accepted
        .iter()
        .find(|n| instance.bridge(n.id) == name || overlap(&n.subnet, &network.subnet))
    {
        let device = instance.bridge(other.id);
        return Err(NetError::Overlap { subnet: network.subnet, with: other.subnet, device });
    }
    if let Some(overlay) = &network.overlay {
        let refuse =
            |why: String| Err(NetError::Refused { what: format!("network {}", network.id), why });
        let same = |n: &&NetworkSpec| n.overlay.as_ref().is_some_and(|o| o.vni == overlay.vni);
        if let Some(other) = accepted.iter().find(same) {
            let vni = overlay.vni;
            return refuse(format!("network {} has the same identifier {vni}", other.id));
        }
        let port = instance.overlay(network.id);
        if observed.links.get(&port).is_some_and(|l| !l.is_own_overlay(&port, instance)) {
            return refuse(format!(
                "interface {port} exists already and Basin did not make it; remove or rename it"
            ));
        }
    }
    if let Some(trunk) = &network.trunk {
        vlan_fits(instance, network, trunk, accepted, observed)?;
    }
    if let Some(link) = observed.links.get(&name)
        && !link.is_own_bridge(&name, instance)
    {
        let kind = if matches!(link.kind, LinkKind::Bridge(_)) { "bridge" } else { "interface" };
        return Err(NetError::Refused {
            what: format!("network {}", network.id),
            why: format!(
                "{kind} {name} exists already and Basin did not make it; remove or rename it"
            ),
        });
    }
    // One that stands stays, even if the server got a route into it meanwhile. A VLAN's
    // subnet may well be one that the server reaches: it is the operator's own.
    if stands || network.trunk.is_some() {
        return Ok(());
    }
    overlaps_server(instance, observed, &network.subnet)
}

fn vlan_fits(
    instance: &Instance,
    network: &NetworkSpec,
    trunk: &Trunk,
    accepted: &[NetworkSpec],
    observed: &Observed,
) -> Result<(), NetError> {
    let refuse =
        |why: String| Err(NetError::Refused { what: format!("network {}", network.id), why });
    let same = |n: &&NetworkSpec| n.trunk.as_ref().is_some_and(|t| t.vlan == trunk.vlan);
    if let Some(other) = accepted.iter().find(same) {
        return refuse(format!("network {} is VLAN {} as well", other.id, trunk.vlan));
    }
    let untagged = |t: &Trunk| t.device.clone().filter(|_| !t.tagged);
    let shared = |n: &&NetworkSpec| {
        untagged(trunk).is_some() && n.trunk.as_ref().and_then(untagged) == untagged(trunk)
    };
    if let Some(other) = accepted.iter().find(shared) {
        return refuse(format!("its interface has network {} without tags already", other.id));
    }
    let port = instance.trunk(network.id);
    if observed.links.get(&port).is_some_and(|l| !l.is_own_trunk(&port, instance)) {
        return refuse(format!(
            "interface {port} exists already and Basin did not make it; remove or rename it"
        ));
    }
    let has = |l: &Link| l.addresses.iter().any(|a| a.addr() == network.gateway);
    let mut others = observed.links.iter().filter(|(name, l)| !l.is_own_bridge(name, instance));
    match others.find(|(_, l)| has(l)) {
        None => Ok(()),
        Some((name, _)) => refuse(format!(
            "its service address {} is this server's own, of {name}: make the network with \
             another one (--service)",
            network.gateway
        )),
    }
}

/// The bridge's address.
pub fn address(network: &NetworkSpec) -> Ipv4Net {
    // It says nothing of where the VLAN's other addresses are.
    let length = if network.trunk.is_some() { 32 } else { network.subnet.prefix_len() };
    // A prefix length of a valid net is valid.
    Ipv4Net::new_assert(network.gateway, length)
}

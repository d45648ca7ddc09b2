//! Pure. What to do so that a server has exactly the networks that are wanted.
//!
//! `plan` compares and `Step`s say what and why; the executor makes no choices.
//! The order is such that a crash between any two steps leaves nothing open: the
//! firewall is in force before a bridge is up, and what Basin turns on in the
//! server's own settings is written down before it is turned on. Applying a plan
//! and planning again gives an empty plan.

mod bridge;
mod service;
#[cfg(test)]
mod tests;
mod vlan;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use basin_model::{MacAddr, NetworkId};
use ipnet::Ipv4Net;

use crate::dnsmasq::Layout;
use crate::fabric::NetworkSpec;
use crate::names::{Instance, TapOwner, bridge_mac};
use crate::overlay::{self, Stance};
use crate::rules::{self, Guarded, Ruleset, Span};
use crate::spec::{Refusal, accept};
use crate::state::{
    Binding, Firewall, Hosts, Link, LinkKind, Observed, PortSettings, Sysctl, VlanSettings,
    VxlanSettings,
};
use crate::trunk;

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    StopDnsmasq {
        network: NetworkId,
        pid: i32,
    },
    DeleteLink {
        name: String,
        index: u32,
    },
    RemoveFiles {
        network: NetworkId,
    },
    RecordForwarding {
        devices: BTreeSet<String>,
    },
    SetForwarding {
        device: String,
        on: bool,
    },
    LoadFirewall {
        ruleset: Ruleset,
    },
    RemoveFirewall,
    CreateBridge {
        name: String,
    },
    ConfigureBridge {
        name: String,
        alias: String,
        mac: MacAddr,
        mtu: u32,
    },
    SetSysctl {
        device: String,
        sysctl: Sysctl,
        value: u8,
    },
    AddAddress {
        device: String,
        address: Ipv4Net,
    },
    RemoveAddress {
        device: String,
        address: Ipv4Net,
    },
    SetUp {
        name: String,
    },
    AttachTap {
        name: String,
        bridge: String,
        mtu: u32,
        settings: PortSettings,
    },
    /// Has the bridge send frames for `mac` to this port, and to no other.
    PinAddress {
        port: String,
        mac: MacAddr,
        sticky: bool,
    },
    UnpinAddress {
        port: String,
        mac: MacAddr,
    },
    CreateOverlay {
        name: String,
        settings: VxlanSettings,
    },
    /// Makes a port to elsewhere one of the bridge's, and opens it.
    AttachPort {
        name: String,
        bridge: String,
        alias: String,
        mtu: u32,
        settings: PortSettings,
    },
    /// Sets the operator's interface up; nothing else of it is changed.
    RaiseTrunk {
        device: String,
    },
    /// Makes the operator's interface a port of the bridge, as one of a VLAN alone.
    JoinTrunk {
        device: String,
        bridge: String,
    },
    LeaveTrunk {
        device: String,
    },
    CreateTrunk {
        name: String,
        settings: VlanSettings,
    },
    /// What the server says from its address there finds the VLAN's guests here.
    AddAnswerRoute {
        device: String,
        to: Ipv4Net,
        from: Ipv4Addr,
    },
    AddAnswerRule {
        from: Ipv4Addr,
    },
    RemoveAnswerRule {
        from: Ipv4Addr,
    },
    SetForwards {
        name: String,
        change: overlay::Change,
    },
    WriteHosts {
        network: NetworkId,
        hosts: Hosts,
    },
    StartDnsmasq {
        network: NetworkId,
        bridge: String,
        arguments: Vec<String>,
    },
    /// `name` is known of `server` once it has read the files.
    ReloadDnsmasq {
        network: NetworkId,
        pid: i32,
        server: Ipv4Addr,
        name: String,
    },
    ReleaseBinding {
        network: NetworkId,
        bridge: String,
        server: Ipv4Addr,
        binding: Binding,
    },
}

/// An operation with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub op: Op,
    pub why: &'static str,
    /// The network to blame when it fails; the others go on.
    pub network: Option<NetworkId>,
}

/// What to do, and what cannot be done.
#[derive(Debug, Default)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// What the steps make true.
    pub accepted: Vec<NetworkSpec>,
    pub refused: Vec<Refusal>,
}

/// See the module.
pub fn plan(
    instance: &Instance,
    layout: &Layout,
    wanted: &[NetworkSpec],
    observed: &Observed,
) -> Plan {
    let (networks, refused) = accept(instance, wanted, observed);
    let mut planner = Planner { instance, layout, observed, networks, steps: Vec::new() };
    let keep: BTreeSet<NetworkId> = wanted.iter().map(|n| n.id).collect();
    planner.remove(&keep);
    let vlans = wanted.iter().filter(|n| n.trunk.is_some());
    planner.remove_answers(&vlans.map(|n| n.gateway).collect());
    for network in &planner.networks.clone() {
        planner.close_trunk(network);
    }
    let guarded = planner.forwarding();
    planner.firewall(&guarded);
    for network in &planner.networks.clone() {
        planner.bridge(network);
        planner.answers(network);
        planner.overlay(network);
        planner.trunk(network);
        planner.taps(network);
        planner.service(network);
    }
    planner.restore_forwarding();
    Plan { steps: planner.steps, accepted: planner.networks, refused }
}

/// Guards a tap that was just made for a network, and puts it on the bridge.
pub fn new_tap(
    instance: &Instance,
    layout: &Layout,
    networks: &[NetworkSpec],
    name: &str,
    observed: &Observed,
) -> Vec<Step> {
    let mut planner =
        Planner { instance, layout, observed, networks: networks.to_vec(), steps: Vec::new() };
    let ruleset = firewall(instance, networks, observed, &guarded(observed));
    planner.step(None, "the guest is held to its address", Op::LoadFirewall { ruleset });
    let found = own_taps(instance, observed).find(|(tap, ..)| *tap == name);
    if let Some((name, link, owner)) = found
        && let Some(network) = networks.iter().find(|n| n.id == owner.network)
    {
        planner.tap(network, name, link, owner);
    }
    planner.steps
}

/// Interfaces that this server routes from only because of Basin. A server that
/// routes for others by its own will is not to be hindered.
pub fn guarded(observed: &Observed) -> BTreeSet<String> {
    let forwarding = &observed.forwarding;
    if forwarding.global { BTreeSet::new() } else { forwarding.recorded.clone() }
}

/// The ruleset for these networks with the taps that exist.
pub fn firewall(
    instance: &Instance,
    networks: &[NetworkSpec],
    observed: &Observed,
    uplinks: &BTreeSet<String>,
) -> Ruleset {
    let taps = own_taps(instance, observed)
        .filter(|(_, _, owner)| {
            let network = networks.iter().find(|n| n.id == owner.network);
            network.is_some_and(|n| Stance::of_mac(n, owner.mac).may_speak())
        })
        .map(|(name, _, owner)| (name.clone(), owner))
        .collect();
    let guarded = |n: &NetworkSpec| Guarded {
        bridge: instance.bridge(n.id),
        subnet: n.subnet,
        gateway: n.gateway,
        mac: bridge_mac(n.id),
        overlay: n.overlay.as_ref().map(|o| Span {
            device: instance.overlay(n.id),
            vni: o.vni,
            local: o.local,
            port: o.port,
        }),
        trunk: trunk::port(instance, n),
    };
    let kept = |n: &NetworkSpec| {
        let port = trunk::port(instance, n)?;
        let taps = own_taps(instance, observed).filter(|(_, _, owner)| owner.network == n.id);
        let kept = trunk::kept(n, taps.map(|(_, _, owner)| (owner.mac, owner.address)));
        Some((port, kept))
    };
    let overlays = || networks.iter().filter_map(|n| Some((n, n.overlay.as_ref()?)));
    let heard = |(n, _): (&NetworkSpec, _)| (instance.overlay(n.id), overlay::heard(n));
    Ruleset {
        networks: networks.iter().map(guarded).collect(),
        taps,
        uplinks: uplinks.clone(),
        heard: overlays().map(heard).collect(),
        kept: networks.iter().filter_map(kept).collect(),
        peers: overlays().flat_map(|(_, o)| o.peers.iter().map(|p| (*p, o.local))).collect(),
    }
}

/// The largest packet of a guest: the same on all servers that the network spans, and
/// otherwise the least MTU on the way to the world, never more than Ethernet's own.
pub fn mtu(network: &NetworkSpec, observed: &Observed) -> u32 {
    if let Some(overlay) = &network.overlay {
        return overlay.mtu;
    }
    if let Some(trunk) = &network.trunk {
        return trunk.mtu;
    }
    let defaults = observed.routes.iter().filter(|r| r.to.prefix_len() == 0 && !r.local);
    let links = defaults.filter_map(|r| observed.links.get(r.device.as_ref()?));
    links.map(|l| l.mtu).filter(|mtu| *mtu >= 576).fold(1500, u32::min)
}

/// Interfaces through which the server reaches anything but itself.
fn uplinks(observed: &Observed) -> BTreeSet<String> {
    let devices = observed.routes.iter().filter(|r| !r.local).filter_map(|r| r.device.clone());
    devices
        .filter(|d| d != "lo" && rules::quotable(d))
        .filter(|d| observed.links.get(d).is_some_and(|l| l.group != crate::names::GROUP))
        .collect()
}

fn own_taps<'a>(
    instance: &'a Instance,
    observed: &'a Observed,
) -> impl Iterator<Item = (&'a String, &'a Link, TapOwner)> {
    observed.links.iter().filter_map(|(name, l)| Some((name, l, l.own_tap(name, instance)?)))
}

struct Planner<'a> {
    instance: &'a Instance,
    layout: &'a Layout,
    observed: &'a Observed,
    networks: Vec<NetworkSpec>,
    steps: Vec<Step>,
}

impl Planner<'_> {
    fn step(&mut self, network: Option<NetworkId>, why: &'static str, op: Op) {
        self.steps.push(Step { op, why, network });
    }

    fn remove(&mut self, keep: &BTreeSet<NetworkId>) {
        const GONE: &str = "its network is not wanted here";
        let observed = self.observed;
        let gone = |id: &NetworkId| !keep.contains(id);
        for (id, service) in observed.services.iter().filter(|(id, _)| gone(id)) {
            if let Some(process) = &service.process {
                self.step(None, GONE, Op::StopDnsmasq { network: *id, pid: process.pid });
            }
        }
        for (name, link, owner) in own_taps(self.instance, observed) {
            if gone(&owner.network) {
                self.step(None, GONE, Op::DeleteLink { name: name.clone(), index: link.index });
            }
        }
        let names = |id: &NetworkId| {
            [self.instance.bridge(*id), self.instance.overlay(*id), self.instance.trunk(*id)]
        };
        let kept: BTreeSet<String> = keep.iter().flat_map(names).collect();
        let instance = self.instance;
        for (name, link) in &observed.links {
            let own = link.is_own_bridge(name, instance)
                || link.is_own_overlay(name, instance)
                || link.is_own_trunk(name, instance);
            if own && !kept.contains(name) {
                self.step(None, GONE, Op::DeleteLink { name: name.clone(), index: link.index });
            }
        }
        for id in observed.services.keys().filter(|id| gone(id)) {
            self.step(None, GONE, Op::RemoveFiles { network: *id });
        }
    }

    /// Whether the server is a router for any network.
    fn routes(&self) -> bool {
        self.networks.iter().any(|n| n.trunk.is_none())
    }

    /// Lets replies from outside come back to guests; returns what to guard.
    fn forwarding(&mut self) -> BTreeSet<String> {
        let forwarding = &self.observed.forwarding;
        if !self.routes() {
            return BTreeSet::new();
        }
        let off: BTreeSet<String> =
            uplinks(self.observed).difference(&forwarding.on).cloned().collect();
        let recorded: BTreeSet<String> = forwarding.recorded.union(&off).cloned().collect();
        let guarded = if forwarding.global { BTreeSet::new() } else { recorded.clone() };
        if recorded != forwarding.recorded {
            let op = Op::RecordForwarding { devices: recorded };
            self.step(None, "to be turned off again with the last network", op);
        }
        guarded
    }

    fn firewall(&mut self, guarded: &BTreeSet<String>) {
        if self.networks.is_empty() {
            if self.observed.firewall != Firewall::Absent {
                self.step(None, "no network is left", Op::RemoveFirewall);
            }
            return;
        }
        let ruleset = firewall(self.instance, &self.networks, self.observed, guarded);
        if self.observed.firewall != Firewall::Loaded(ruleset.clone()) {
            self.step(None, "the rules in force are not these", Op::LoadFirewall { ruleset });
        }
        if !self.routes() {
            return;
        }
        // Only now: the rules that keep the server from routing for others are in force.
        for device in uplinks(self.observed).difference(&self.observed.forwarding.on) {
            let op = Op::SetForwarding { device: device.clone(), on: true };
            self.step(None, "replies to guests come in here", op);
        }
    }

    fn restore_forwarding(&mut self) {
        let forwarding = &self.observed.forwarding;
        // Another daemon's networks may live on what this one turned on.
        let others = self.observed.links.iter().any(|(name, link)| {
            matches!(link.kind, LinkKind::Bridge(_))
                && link.group == crate::names::GROUP
                && !link.is_own_bridge(name, self.instance)
        });
        if self.routes() || forwarding.recorded.is_empty() || others {
            return;
        }
        if !forwarding.global {
            for device in forwarding.recorded.intersection(&forwarding.on) {
                let op = Op::SetForwarding { device: device.clone(), on: false };
                self.step(None, "Basin turned it on, and no network needs it", op);
            }
        }
        self.step(None, "all is as before", Op::RecordForwarding { devices: BTreeSet::new() });
    }
}

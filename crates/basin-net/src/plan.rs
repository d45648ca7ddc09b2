//! Pure. What to do so that a server has exactly the networks that are wanted.
//!
//! `plan` compares and `Step`s say what and why; the executor makes no choices.
//! The order is such that a crash between any two steps leaves nothing open: the
//! firewall is in force before a bridge is up, and what Basin turns on in the
//! server's own settings is written down before it is turned on. Applying a plan
//! and planning again gives an empty plan.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use basin_model::{MacAddr, NetworkId};
use ipnet::Ipv4Net;

use crate::confirm;
use crate::dnsmasq::{self, Layout};
use crate::fabric::{NetError, NetworkSpec};
use crate::names::{Instance, TapOwner, bridge_alias, bridge_mac};
use crate::rules::{self, Guarded, Ruleset};
use crate::spec::{accept, address};
use crate::state::{
    Binding, BridgeSettings, Firewall, Hosts, Link, LinkKind, Observed, PortSettings, Service,
    Sysctl,
};

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
        owner: TapOwner,
        mtu: u32,
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
    pub refused: Vec<NetError>,
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
    let guarded = planner.forwarding();
    planner.firewall(&guarded);
    for network in &planner.networks.clone() {
        planner.bridge(network);
        planner.taps(network);
        planner.service(network);
    }
    planner.restore_forwarding();
    Plan { steps: planner.steps, accepted: planner.networks, refused }
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
        .filter(|(_, _, owner)| networks.iter().any(|n| n.id == owner.network))
        .map(|(name, _, owner)| (name.clone(), owner))
        .collect();
    let guarded = |n: &NetworkSpec| Guarded {
        bridge: instance.bridge(n.id),
        subnet: n.subnet,
        gateway: n.gateway,
    };
    Ruleset { networks: networks.iter().map(guarded).collect(), taps, uplinks: uplinks.clone() }
}

/// The least MTU on the way to the world, and never more than Ethernet's own.
pub fn mtu(observed: &Observed) -> u32 {
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
        let bridges: BTreeSet<String> = keep.iter().map(|id| self.instance.bridge(*id)).collect();
        for (name, link) in &observed.links {
            if link.is_own_bridge(name, self.instance) && !bridges.contains(name) {
                self.step(None, GONE, Op::DeleteLink { name: name.clone(), index: link.index });
            }
        }
        for id in observed.services.keys().filter(|id| gone(id)) {
            self.step(None, GONE, Op::RemoveFiles { network: *id });
        }
    }

    /// Lets replies from outside come back to guests; returns what to guard.
    fn forwarding(&mut self) -> BTreeSet<String> {
        let forwarding = &self.observed.forwarding;
        if self.networks.is_empty() {
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
            link.group == crate::names::GROUP && !link.is_own_bridge(name, self.instance)
        });
        if !self.networks.is_empty() || forwarding.recorded.is_empty() || others {
            return;
        }
        if !forwarding.global {
            for device in forwarding.recorded.intersection(&forwarding.on) {
                let op = Op::SetForwarding { device: device.clone(), on: false };
                self.step(None, "Basin turned it on, and no network is left", op);
            }
        }
        self.step(None, "all is as before", Op::RecordForwarding { devices: BTreeSet::new() });
    }

    fn bridge(&mut self, network: &NetworkSpec) {
        let id = Some(network.id);
        let name = self.instance.bridge(network.id);
        let (mac, mtu) = (bridge_mac(network.id), mtu(self.observed));
        let link = self.observed.links.get(&name);
        if link.is_none() {
            self.step(id, "the network has no bridge", Op::CreateBridge { name: name.clone() });
        }
        let alias = bridge_alias(network.id);
        let configured = link.is_some_and(|l| {
            l.kind == LinkKind::Bridge(BridgeSettings::WANTED)
                && l.alias == alias
                && l.mac == Some(mac)
                && l.mtu == mtu
        });
        if !configured {
            let op = Op::ConfigureBridge { name: name.clone(), alias, mac, mtu };
            self.step(id, "the bridge's settings are not these", op);
        }
        self.sysctls(id, &name, &Sysctl::BRIDGE);
        let wanted = address(network);
        for address in link.iter().flat_map(|l| &l.addresses).filter(|a| **a != wanted) {
            let op = Op::RemoveAddress { device: name.clone(), address: *address };
            self.step(id, "not the network's gateway address", op);
        }
        if !link.is_some_and(|l| l.addresses.contains(&wanted)) {
            let op = Op::AddAddress { device: name.clone(), address: wanted };
            self.step(id, "the gateway address is missing", op);
        }
        if !link.is_some_and(|l| l.up) {
            self.step(id, "the bridge is down", Op::SetUp { name });
        }
    }

    fn sysctls(&mut self, id: Option<NetworkId>, name: &str, wanted: &[(Sysctl, u8)]) {
        let found: BTreeMap<Sysctl, u8> =
            self.observed.links.get(name).map(|l| l.sysctls.clone()).unwrap_or_default();
        for (sysctl, value) in wanted.iter().filter(|(s, v)| found.get(s) != Some(v)) {
            let op = Op::SetSysctl { device: name.to_owned(), sysctl: *sysctl, value: *value };
            self.step(id, "the kernel's setting is not this", op);
        }
    }

    fn taps(&mut self, network: &NetworkSpec) {
        let bridge = self.instance.bridge(network.id);
        let index = self.observed.links.get(&bridge).map(|l| l.index);
        let observed = self.observed;
        for (name, link, owner) in own_taps(self.instance, observed) {
            if owner.network != network.id {
                continue;
            }
            self.sysctls(Some(network.id), name, &Sysctl::TAP);
            let attached = link.up
                && index.is_some()
                && link.master == index
                && link.kind == LinkKind::Tap(PortSettings::WANTED);
            if !attached {
                let (name, mtu) = (name.clone(), mtu(observed));
                let op = Op::AttachTap { name, bridge: bridge.clone(), owner, mtu };
                self.step(Some(network.id), "a machine's tap is not on its bridge", op);
            }
        }
    }

    fn service(&mut self, network: &NetworkSpec) {
        let id = network.id;
        let bridge = self.instance.bridge(id);
        let none = Service::default();
        let observed = self.observed;
        let service = observed.services.get(&id).unwrap_or(&none);
        let hosts = dnsmasq::hosts(network);
        let name = confirm::name(&hosts);
        let stale = service.hosts.as_ref() != Some(&hosts);
        if stale {
            self.step(
                Some(id),
                "names and addresses changed",
                Op::WriteHosts { network: id, hosts },
            );
        }
        let arguments = dnsmasq::arguments(self.layout, network, &bridge, mtu(observed));
        let index = observed.links.get(&bridge).map(|l| l.index);
        match &service.process {
            Some(p) if p.arguments == arguments && Some(p.bridge) == index => {
                if stale || !service.hosts_loaded {
                    let op = Op::ReloadDnsmasq {
                        network: id,
                        pid: p.pid,
                        server: network.gateway,
                        name,
                    };
                    self.step(Some(id), "it has not read the names and addresses", op);
                }
            }
            other => {
                if let Some(p) = other {
                    let op = Op::StopDnsmasq { network: id, pid: p.pid };
                    self.step(Some(id), "it runs with other settings", op);
                }
                let op = Op::StartDnsmasq { network: id, bridge: bridge.clone(), arguments };
                self.step(Some(id), "the network has no DHCP and DNS", op);
            }
        }
        for binding in &service.bindings {
            let held =
                network.leases.iter().any(|l| l.mac == binding.mac && l.address == binding.address);
            if !held {
                let (binding, server) = (binding.clone(), network.gateway);
                let bridge = bridge.clone();
                let op = Op::ReleaseBinding { network: id, bridge, server, binding };
                self.step(Some(id), "the interface is gone or has another address", op);
            }
        }
    }
}

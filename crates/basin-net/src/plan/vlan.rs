//! Pure. A network's port to a VLAN of the physical network, and how the server answers
//! there.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::{Op, Planner};
use crate::fabric::NetworkSpec;
use crate::names::{GROUP, bridge_alias};
use crate::state::{Link, LinkKind, PortSettings, Route, Sysctl, VlanSettings};

impl Planner<'_> {
    /// Closes what is another way to the VLAN than the one that is wanted, while the
    /// rules for it are still in force.
    pub(super) fn close_trunk(&mut self, network: &NetworkSpec) {
        let name = self.instance.trunk(network.id);
        let settings = self.vlan_settings(network);
        if let Some(found) = self.own_trunk(&name)
            && !matches!((found.kind, settings), (LinkKind::Vlan(is, _), Some(s)) if is == s)
        {
            let op = Op::DeleteLink { name: name.clone(), index: found.index };
            self.step(Some(network.id), "the network's way to its VLAN is not this", op);
        }
        let (observed, instance) = (self.observed, self.instance);
        let bridge = observed.links.get(&instance.bridge(network.id));
        let Some(bridge) = bridge.filter(|_| network.trunk.is_some()) else { return };
        // What another network has now goes to its bridge from this one.
        let wanted: BTreeSet<String> = self.networks.iter().filter_map(untagged).collect();
        for (name, link) in observed.links.iter().filter(|(_, l)| l.master == Some(bridge.index)) {
            let own = link.group == GROUP || link.own_tap(name, instance).is_some();
            if !own && !wanted.contains(name) {
                let op = Op::LeaveTrunk { device: name.clone() };
                self.step(Some(network.id), "the network's way to its VLAN is another", op);
            }
        }
    }

    fn own_trunk(&self, name: &str) -> Option<&Link> {
        self.observed.links.get(name).filter(|l| l.is_own_trunk(name, self.instance))
    }

    /// Of the port of a VLAN that has a tag at an interface that is there.
    fn vlan_settings(&self, network: &NetworkSpec) -> Option<VlanSettings> {
        let trunk = network.trunk.as_ref().filter(|t| t.tagged)?;
        let parent = self.observed.links.get(trunk.device.as_ref()?.as_str())?.index;
        Some(VlanSettings { vlan: trunk.vlan.get(), parent })
    }

    /// The port: before it is up, the rules for it are in force.
    pub(super) fn trunk(&mut self, network: &NetworkSpec) {
        let id = Some(network.id);
        let observed = self.observed;
        let trunk = network.trunk.as_ref();
        let device = trunk.and_then(|t| t.device.as_ref()).map(ToString::to_string);
        let parent = device.as_ref().and_then(|d| observed.links.get(d));
        let settings = self.vlan_settings(network);
        let name = self.instance.trunk(network.id);
        // Another one has been closed.
        let right =
            |l: &&Link| matches!((l.kind, settings), (LinkKind::Vlan(is, _), Some(s)) if is == s);
        let link = observed.links.get(&name).filter(right);
        let (Some(trunk), Some(device), Some(parent)) = (trunk, device, parent) else { return };
        if !parent.up {
            let op = Op::RaiseTrunk { device: device.clone() };
            self.step(id, "nothing passes an interface that is down", op);
        }
        let bridge = self.instance.bridge(network.id);
        let master = observed.links.get(&bridge).map(|l| l.index);
        let joined = |l: &Link| master.is_some() && l.master == master;
        let Some(settings) = settings else {
            if !joined(parent) {
                let op = Op::JoinTrunk { device, bridge };
                self.step(id, "the way to the VLAN is not open", op);
            }
            return;
        };
        if link.is_none() {
            let op = Op::CreateTrunk { name: name.clone(), settings };
            self.step(id, "the network has no way to its VLAN", op);
        }
        self.sysctls(id, &name, &Sysctl::PORT);
        let alias = bridge_alias(network.id);
        let attached = link.is_some_and(|l| {
            l.kind == LinkKind::Vlan(settings, PortSettings::TRUNK)
                && l.up
                && l.alias == alias
                && l.mtu == trunk.mtu
                && joined(l)
        });
        if !attached {
            let (mtu, settings) = (trunk.mtu, PortSettings::TRUNK);
            let op = Op::AttachPort { name, bridge, alias, mtu, settings };
            self.step(id, "the way to the VLAN is not open", op);
        }
    }

    /// Has answers to guests find them, and nothing else.
    pub(super) fn answers(&mut self, network: &NetworkSpec) {
        if network.trunk.is_none() {
            return;
        }
        let id = Some(network.id);
        let device = self.instance.bridge(network.id);
        let (to, from) = (network.subnet, network.gateway);
        let route = Route { to, device: Some(device.clone()), local: false };
        if !self.observed.answer_routes.contains(&route) {
            self.step(id, "answers to guests have no way", Op::AddAnswerRoute { device, to, from });
        }
        if !self.observed.answer_rules.contains(&from) {
            self.step(id, "answers to guests go elsewhere", Op::AddAnswerRule { from });
        }
    }

    /// Rules of networks that are no more. Those of other daemons stay.
    pub(super) fn remove_answers(&mut self, wanted: &BTreeSet<Ipv4Addr>) {
        let others: BTreeSet<Ipv4Addr> = self
            .observed
            .links
            .iter()
            .filter(|(name, l)| l.group == GROUP && !l.is_own_bridge(name, self.instance))
            .flat_map(|(_, l)| l.addresses.iter().map(|a| a.addr()))
            .collect();
        for from in self.observed.answer_rules.difference(wanted) {
            if !others.contains(from) {
                self.step(None, "its network is not here", Op::RemoveAnswerRule { from: *from });
            }
        }
    }
}

/// The operator's interface that is to be a port of the network's bridge.
fn untagged(network: &NetworkSpec) -> Option<String> {
    let trunk = network.trunk.as_ref().filter(|t| !t.tagged)?;
    trunk.device.as_ref().map(ToString::to_string)
}

//! Pure. A network's bridge, its port to other servers, and machines' taps on it.

use std::collections::{BTreeMap, BTreeSet};

use basin_model::{MacAddr, NetworkId};

use super::{Op, Planner, mtu, own_taps};
use crate::fabric::NetworkSpec;
use crate::names::{TapOwner, bridge_alias, bridge_mac};
use crate::overlay::{self, Stance};
use crate::spec::address;
use crate::state::{BridgeSettings, Entry, Link, LinkKind, PortSettings, Sysctl, VxlanSettings};
use crate::trunk;

impl Planner<'_> {
    pub(super) fn bridge(&mut self, network: &NetworkSpec) {
        let id = Some(network.id);
        let name = self.instance.bridge(network.id);
        let (mac, mtu) = (bridge_mac(network.id), mtu(network, self.observed));
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
        let vlan = network.trunk.is_some();
        let sysctls = if vlan { Sysctl::VLAN_BRIDGE } else { Sysctl::BRIDGE };
        self.sysctls(id, &name, &sysctls);
        let wanted = address(network);
        for address in link.iter().flat_map(|l| &l.addresses).filter(|a| **a != wanted) {
            let op = Op::RemoveAddress { device: name.clone(), address: *address };
            self.step(id, "not the network's own address", op);
        }
        if !link.is_some_and(|l| l.addresses.contains(&wanted)) {
            let op = Op::AddAddress { device: name.clone(), address: wanted };
            self.step(id, "the network's own address is missing", op);
        }
        if !link.is_some_and(|l| l.up) {
            self.step(id, "the bridge is down", Op::SetUp { name });
        }
    }

    pub(super) fn sysctls(&mut self, id: Option<NetworkId>, name: &str, wanted: &[(Sysctl, u8)]) {
        let found: BTreeMap<Sysctl, u8> =
            self.observed.links.get(name).map(|l| l.sysctls.clone()).unwrap_or_default();
        for (sysctl, value) in wanted.iter().filter(|(s, v)| found.get(s) != Some(v)) {
            let op = Op::SetSysctl { device: name.to_owned(), sysctl: *sysctl, value: *value };
            self.step(id, "the kernel's setting is not this", op);
        }
    }

    /// The port to other servers: before it is up, the rules for it are in force.
    pub(super) fn overlay(&mut self, network: &NetworkSpec) {
        let id = Some(network.id);
        let name = self.instance.overlay(network.id);
        let observed = self.observed;
        let mut link = observed.links.get(&name);
        let settings = network.overlay.as_ref().map(|o| VxlanSettings {
            vni: o.vni.get(),
            local: Some(o.local),
            port: o.port,
            learning: true,
        });
        if let Some(found) = link.filter(|l| l.is_own_overlay(&name, self.instance))
            && !matches!((found.kind, settings), (LinkKind::Vxlan(is, _), Some(s)) if is == s)
        {
            let op = Op::DeleteLink { name: name.clone(), index: found.index };
            self.step(id, "the network's way to other servers is not this", op);
            link = None;
        }
        let (Some(overlay), Some(settings)) = (&network.overlay, settings) else { return };
        if link.is_none() {
            let op = Op::CreateOverlay { name: name.clone(), settings };
            self.step(id, "the network has no way to other servers", op);
        }
        self.sysctls(id, &name, &Sysctl::PORT);
        let bridge = self.instance.bridge(network.id);
        let alias = bridge_alias(network.id);
        let master = observed.links.get(&bridge).map(|l| l.index);
        let attached = link.is_some_and(|l| {
            l.kind == LinkKind::Vxlan(settings, PortSettings::OVERLAY)
                && l.up
                && l.alias == alias
                && l.mtu == overlay.mtu
                && master.is_some()
                && l.master == master
        });
        if !attached {
            let (mtu, settings) = (overlay.mtu, PortSettings::OVERLAY);
            let op = Op::AttachPort { name: name.clone(), bridge, alias, mtu, settings };
            self.step(id, "the way to other servers is not open", op);
        }
        let none = BTreeSet::new();
        let found = link.map_or(&none, |l| &l.forwards);
        let change = overlay::change(network, overlay, found);
        if !change.is_empty() {
            self.step(id, "interfaces are elsewhere", Op::SetForwards { name, change });
        }
    }

    pub(super) fn taps(&mut self, network: &NetworkSpec) {
        for (name, link, owner) in own_taps(self.instance, self.observed) {
            if owner.network == network.id {
                self.tap(network, name, link, owner);
            }
        }
    }

    pub(super) fn tap(&mut self, network: &NetworkSpec, name: &str, link: &Link, owner: TapOwner) {
        let id = Some(network.id);
        let bridge = self.instance.bridge(network.id);
        let index = self.observed.links.get(&bridge).map(|l| l.index);
        self.sysctls(id, name, &Sysctl::PORT);
        let stance = Stance::of_mac(network, owner.mac);
        let on_bridge = index.is_some() && link.master == index;
        let attached = link.up && on_bridge && link.kind == LinkKind::Tap(stance.port());
        if !attached {
            let (name, mtu) = (name.to_owned(), mtu(network, self.observed));
            let settings = stance.port();
            let op = Op::AttachTap { name, bridge, mtu, settings };
            self.step(id, "a machine's tap is not on its bridge", op);
        }
        let found = if on_bridge { link.entries.get(&owner.mac) } else { None };
        match stance.entry() {
            // It has left already: its announcement came from its new server.
            Some(Entry::Fixed) if self.told_elsewhere(network, owner.mac) => {}
            Some(entry) if found != Some(&entry) => {
                let (port, mac) = (name.to_owned(), owner.mac);
                let op = Op::PinAddress { port, mac, sticky: entry == Entry::Sticky };
                self.step(id, "the bridge does not hold the guest's address", op);
            }
            None if found.is_some_and(|e| stance != Stance::Arriving || *e != Entry::Learned) => {
                let op = Op::UnpinAddress { port: name.to_owned(), mac: owner.mac };
                self.step(id, "the guest is elsewhere", op);
            }
            _ => {}
        }
    }

    /// Whether the bridge sends frames for the address to other servers.
    fn told_elsewhere(&self, network: &NetworkSpec, mac: MacAddr) -> bool {
        let overlay = self.instance.overlay(network.id);
        let ports = trunk::port(self.instance, network).into_iter().chain([overlay]);
        let mut links = ports.filter_map(|port| self.observed.links.get(&port));
        links.any(|l| l.entries.contains_key(&mac))
    }
}

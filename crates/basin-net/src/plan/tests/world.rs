//! A model of the kernel and dnsmasq: what each operation of a plan does.

use std::collections::{BTreeMap, BTreeSet};

use super::instance;
use crate::names::GROUP;
use crate::plan::Op;
use crate::state::*;

pub fn new_link(index: u32, kind: LinkKind) -> Link {
    Link {
        index,
        kind,
        group: 0,
        alias: String::new(),
        up: false,
        mtu: 1500,
        mac: None,
        master: None,
        addresses: BTreeSet::new(),
        sysctls: BTreeMap::new(),
        entries: BTreeMap::new(),
        forwards: BTreeSet::new(),
    }
}

/// What the kernel and dnsmasq do on each operation.
pub fn apply(o: &mut Observed, op: &Op) {
    let link = |o: &mut Observed, name: &str, change: &dyn Fn(&mut Link)| {
        change(o.links.get_mut(name).unwrap_or_else(|| panic!("{op:?}: no {name}")));
    };
    match op {
        Op::StopDnsmasq { network, .. } => o.services.get_mut(network).unwrap().process = None,
        Op::DeleteLink { name, index } => {
            o.links.remove(name);
            o.routes.retain(|r| r.device.as_ref() != Some(name));
            o.answer_routes.retain(|r| r.device.as_ref() != Some(name));
            for port in o.links.values_mut().filter(|l| l.master == Some(*index)) {
                port.master = None;
                port.entries.clear();
            }
        }
        Op::RemoveFiles { network } => {
            o.services.remove(network);
        }
        Op::RecordForwarding { devices } => o.forwarding.recorded = devices.clone(),
        Op::SetForwarding { device, on: true } => {
            assert!(o.forwarding.recorded.contains(device), "not written down: {device}");
            o.forwarding.on.insert(device.clone());
        }
        Op::SetForwarding { device, on: false } => {
            o.forwarding.on.remove(device);
        }
        Op::LoadFirewall { ruleset } => o.firewall = Firewall::Loaded(ruleset.clone()),
        Op::RemoveFirewall => o.firewall = Firewall::Absent,
        Op::CreateBridge { name } => {
            let index = o.links.values().map(|l| l.index).max().unwrap_or(0) + 1;
            let kind = LinkKind::Bridge(BridgeSettings::WANTED);
            let link = Link { group: GROUP, ..new_link(index, kind) };
            assert!(o.links.insert(name.clone(), link).is_none());
        }
        Op::ConfigureBridge { name, alias, mac, mtu } => link(o, name, &|l| {
            l.kind = LinkKind::Bridge(BridgeSettings::WANTED);
            l.alias.clone_from(alias);
            l.mac = Some(*mac);
            l.mtu = *mtu;
        }),
        Op::SetSysctl { device, sysctl, value } => link(o, device, &|l| {
            l.sysctls.insert(*sysctl, *value);
        }),
        Op::AddAddress { device, address } => {
            link(o, device, &|l| {
                l.addresses.insert(*address);
            });
            let route = Route { to: address.trunc(), device: Some(device.clone()), local: false };
            o.routes.push(route);
        }
        Op::RemoveAddress { device, address } => {
            link(o, device, &|l| {
                l.addresses.remove(address);
            });
            let to = address.trunc();
            o.routes.retain(|r| r.device.as_ref() != Some(device) || r.to != to);
        }
        Op::SetUp { name } => {
            let Firewall::Loaded(rules) = &o.firewall else { panic!("{name} up without rules") };
            assert!(
                rules.text(&instance()).contains(name.as_str()),
                "{name} up without rules of its own"
            );
            link(o, name, &|l| l.up = true);
        }
        Op::AttachTap { name, bridge, settings, .. } => {
            guarded(o, name);
            attach(o, name, bridge, LinkKind::Tap(*settings));
        }
        Op::CreateOverlay { name, settings } => {
            let index = o.links.values().map(|l| l.index).max().unwrap_or(0) + 1;
            let kind = LinkKind::Vxlan(*settings, PortSettings { learning: true, flood: true });
            let link = Link { group: GROUP, ..new_link(index, kind) };
            assert!(o.links.insert(name.clone(), link).is_none());
        }
        Op::AttachPort { name, bridge, alias, mtu, settings } => {
            guarded(o, name);
            let kind = match o.links[name].kind {
                LinkKind::Vxlan(vxlan, _) => LinkKind::Vxlan(vxlan, *settings),
                LinkKind::Vlan(vlan, _) => LinkKind::Vlan(vlan, *settings),
                _ => panic!("{op:?}"),
            };
            attach(o, name, bridge, kind);
            link(o, name, &|l| {
                l.alias.clone_from(alias);
                l.mtu = *mtu;
            });
        }
        Op::RaiseTrunk { device } => link(o, device, &|l| l.up = true),
        Op::JoinTrunk { device, bridge } => {
            guarded(o, device);
            let master = Some(o.links[bridge].index);
            link(o, device, &|l| l.master = master);
        }
        Op::LeaveTrunk { device } => link(o, device, &|l| l.master = None),
        Op::CreateTrunk { name, settings } => {
            let index = o.links.values().map(|l| l.index).max().unwrap_or(0) + 1;
            assert!(o.links.values().any(|l| l.index == settings.parent), "{op:?}");
            let kind = LinkKind::Vlan(*settings, PortSettings { learning: true, flood: true });
            let link = Link { group: GROUP, ..new_link(index, kind) };
            assert!(o.links.insert(name.clone(), link).is_none());
        }
        Op::AddAnswerRoute { device, to, .. } => {
            assert!(o.links[device].up, "no route by an interface that is down");
            let device = Some(device.clone());
            assert!(o.answer_routes.insert(Route { to: *to, device, local: false }));
        }
        Op::AddAnswerRule { from } => assert!(o.answer_rules.insert(*from)),
        Op::RemoveAnswerRule { from } => assert!(o.answer_rules.remove(from)),
        Op::PinAddress { port, mac, sticky } => {
            let master = o.links[port].master;
            assert!(master.is_some(), "{port} is no port");
            for other in o.links.values_mut().filter(|l| l.master == master) {
                other.entries.remove(mac);
            }
            let entry = if *sticky { Entry::Sticky } else { Entry::Fixed };
            link(o, port, &|l| {
                l.entries.insert(*mac, entry);
            });
        }
        Op::UnpinAddress { port, mac } => link(o, port, &|l| {
            l.entries.remove(mac);
        }),
        Op::SetForwards { name, change } => link(o, name, &|l| {
            for forward in &change.set {
                if forward.mac != FLOOD {
                    l.forwards.retain(|f| f.mac != forward.mac);
                }
                l.forwards.insert(*forward);
            }
            for forward in &change.remove {
                assert!(l.forwards.remove(forward), "{forward:?} was not there");
            }
        }),
        Op::WriteHosts { network, hosts } => {
            let service = o.services.entry(*network).or_default();
            service.hosts = Some(hosts.clone());
            service.hosts_loaded = false;
        }
        Op::StartDnsmasq { network, bridge, arguments } => {
            let index = o.links[bridge].index;
            let service = o.services.entry(*network).or_default();
            assert!(service.process.is_none(), "a second dnsmasq");
            assert!(service.hosts.is_some(), "started before its files");
            service.process = Some(Process { pid: 7, arguments: arguments.clone(), bridge: index });
            service.hosts_loaded = true;
        }
        Op::ReloadDnsmasq { network, .. } => {
            o.services.get_mut(network).unwrap().hosts_loaded = true;
        }
        Op::ReleaseBinding { network, binding, .. } => {
            let service = o.services.get_mut(network).unwrap();
            assert!(service.process.is_some(), "nobody to release it");
            service.bindings.remove(binding);
        }
    }
}

/// Nothing is open to guests or servers before rules that name it are in force.
fn guarded(o: &Observed, port: &str) {
    let Firewall::Loaded(rules) = &o.firewall else { panic!("{port} up without rules") };
    let tap = port.starts_with(&instance().tap_prefix());
    let text = rules.text(&instance());
    assert!(tap || text.contains(port), "{port} open without rules of its own");
}

fn attach(o: &mut Observed, name: &str, bridge: &str, kind: LinkKind) {
    let master = Some(o.links[bridge].index);
    let link = o.links.get_mut(name).unwrap();
    if link.master != master {
        link.entries.clear();
    }
    link.master = master;
    link.up = true;
    link.kind = kind;
    link.sysctls.extend(Sysctl::PORT);
}

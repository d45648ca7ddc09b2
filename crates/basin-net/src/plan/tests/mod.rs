//! Properties of the plan, on a model of the kernel that carries out its steps.

mod overlay;
mod vlan;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use basin_model::network::Vni;
use basin_model::vlan::VlanId;
use basin_model::{MacAddr, NetworkId, NicId};
use ipnet::Ipv4Net;
use proptest::prelude::*;
use uuid::Uuid;

use super::{Op, Plan, plan};
use crate::dnsmasq::{self, Layout};
use crate::fabric::{Lease, NetworkSpec, Overlay, Trunk};
use crate::names::{GROUP, Instance, TapOwner};
use crate::state::*;
use world::{apply, new_link};

fn instance() -> Instance {
    Instance::new("a").unwrap()
}

fn layout() -> Layout {
    Layout { run_dir: "/run/b".into(), state_dir: "/var/b".into(), user: "dnsmasq".into() }
}

fn id(n: u8) -> NetworkId {
    NetworkId::from_uuid(Uuid::from_u128(0x9000 + u128::from(n)))
}

/// Interfaces of the server that an operation changes.
fn touched(op: &Op) -> Option<&str> {
    match op {
        Op::DeleteLink { name, .. }
        | Op::CreateBridge { name }
        | Op::ConfigureBridge { name, .. }
        | Op::SetUp { name }
        | Op::CreateOverlay { name, .. }
        | Op::CreateTrunk { name, .. }
        | Op::AttachPort { name, .. }
        | Op::SetForwards { name, .. }
        | Op::PinAddress { port: name, .. }
        | Op::UnpinAddress { port: name, .. }
        | Op::AttachTap { name, .. } => Some(name),
        Op::SetSysctl { device, .. }
        | Op::AddAddress { device, .. }
        | Op::RemoveAddress { device, .. }
        | Op::AddAnswerRoute { device, .. } => Some(device),
        _ => None,
    }
}

/// The server's own address between servers, two others, and one that is no peer.
fn place(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, n)
}

/// Where an interface is and where its machine moves to.
fn places() -> impl Strategy<Value = (Option<Ipv4Addr>, Option<Ipv4Addr>)> {
    let one = || prop::option::of((1u8..=4).prop_map(place));
    (one(), one())
}

fn overlay(n: u8, mtu: u32) -> Overlay {
    Overlay {
        vni: Vni::new(u32::from(n) + 1).unwrap(),
        local: place(1),
        port: 4789,
        peers: BTreeSet::from([place(2), place(3)]),
        mtu,
    }
}

/// How a network reaches beyond its bridge.
#[derive(Debug, Clone)]
enum Way {
    Alone,
    Overlay { mtu: u32 },
    Vlan { device: Option<&'static str>, tagged: bool, mtu: u32 },
}

fn ways() -> impl Strategy<Value = Way> {
    prop_oneof![
        Just(Way::Alone),
        prop_oneof![Just(1450u32), Just(1370)].prop_map(|mtu| Way::Overlay { mtu }),
        (
            prop_oneof![
                4 => Just((Some("eth0"), true)),
                4 => Just((Some("eth2"), false)),
                1 => Just((Some("eth2"), true)),
                1 => Just((Some("eth0"), false)),
                1 => Just((Some("eth9"), true)),
                1 => Just((None, true)),
            ],
            prop_oneof![Just(1500u32), Just(1370)],
        )
            .prop_map(|((device, tagged), mtu)| Way::Vlan { device, tagged, mtu }),
    ]
}

fn trunk(n: u8, third: u8, device: Option<&str>, mtu: u32) -> Trunk {
    Trunk {
        vlan: VlanId::new(u16::from(n) + 100).unwrap(),
        device: device.map(|d| d.parse().unwrap()),
        tagged: true,
        router: Ipv4Addr::new(10, 0, third, 254),
        mtu,
        local: Some(place(1)),
    }
}

prop_compose! {
    fn specs()(
        picks in prop::collection::btree_map(
            0u8..5,
            (0u8..4, 0usize..4, any::<bool>(), ways()),
            0..4,
        ),
        places in prop::collection::vec(places(), 4),
    ) -> Vec<NetworkSpec> {
        picks.into_iter().map(|(n, (third, leases, odd, way))| NetworkSpec {
            id: id(n),
            subnet: Ipv4Net::new([10, 0, third, 0].into(), 24).unwrap(),
            gateway: [10, 0, third, 1].into(),
            domain: "vm".into(),
            leases: (0..leases).map(|i| Lease {
                mac: MacAddr([2, 0, 0, 0, n, i as u8]),
                address: Ipv4Addr::new(10, 0, third, 10 + i as u8),
                name: if odd && i == 1 { "bad name".into() } else { format!("n{i}") },
                at: places[i].0,
                to: places[i].1,
            }).collect(),
            overlay: match way {
                Way::Overlay { mtu } => Some(overlay(n, mtu)),
                _ => None,
            },
            trunk: match way {
                Way::Vlan { device, tagged, mtu } => {
                    Some(Trunk { tagged, ..trunk(n, third, device, mtu) })
                }
                _ => None,
            },
        }).collect()
    }
}

/// Interfaces that look much like Basin's and are not: other instances', wrong
/// kind, wrong group, no alias, and an uplink.
fn foreign() -> impl Strategy<Value = BTreeMap<String, Link>> {
    let name = prop_oneof![
        (0u8..5).prop_map(|n| instance().bridge(id(n))),
        (0u8..5).prop_map(|n| instance().overlay(id(n))),
        (0u8..5).prop_map(|n| instance().trunk(id(n))),
        (0u8..5).prop_map(|n| format!("btb-{n:08x}")),
        (0u8..5).prop_map(|n| format!("bta-{n:08x}")),
        Just("docker0".to_owned()),
        Just("eth1".to_owned()),
    ];
    let kind = prop_oneof![
        Just((LinkKind::Bridge(BridgeSettings::WANTED), 0)),
        Just((LinkKind::Other, GROUP)),
        Just((LinkKind::Other, 0)),
        Just((LinkKind::Tap(PortSettings::GUEST), 0)),
    ];
    prop::collection::btree_map(name, kind, 0..4).prop_map(|picks| {
        let links = picks.into_iter().enumerate();
        links
            .map(|(i, (name, (kind, group)))| {
                (name, Link { group, ..new_link(100 + i as u32, kind) })
            })
            .collect()
    })
}

prop_compose! {
    fn servers()(
        foreign in foreign(),
        global in any::<bool>(),
        already in any::<bool>(),
        mtu in prop_oneof![Just(1500u32), Just(1420), Just(9000)],
        taken in prop::option::of(0u8..4),
        up in any::<bool>(),
    ) -> Observed {
        let mut o = Observed { links: foreign, ..Observed::default() };
        let own = Ipv4Net::new(place(1), 24).unwrap();
        let mac = Some(MacAddr([2, 0, 0, 9, 9, 9]));
        let eth0 = Link { mtu, mac, up, addresses: [own].into(), ..new_link(2, LinkKind::Other) };
        o.links.insert("eth0".into(), eth0);
        let mac = Some(MacAddr([2, 0, 0, 9, 9, 8]));
        o.links.insert("eth2".into(), Link { mac, up, ..new_link(3, LinkKind::Other) });
        let default = Ipv4Net::new(Ipv4Addr::UNSPECIFIED, 0).unwrap();
        o.routes.push(Route { to: default, device: Some("eth0".into()), local: false });
        if let Some(third) = taken {
            let to = Ipv4Net::new([10, 0, third, 0].into(), 23).unwrap();
            o.routes.push(Route { to: to.trunc(), device: Some("eth0".into()), local: false });
        }
        o.forwarding.global = global;
        if global || already {
            o.forwarding.on.insert("eth0".into());
        }
        o
    }
}

/// Machines start on what stands.
fn start_machines(o: &mut Observed, plan: &Plan) {
    for (i, lease) in
        plan.accepted.iter().flat_map(|n| n.leases.iter().map(move |l| (n.id, l))).enumerate()
    {
        let (network, lease) = lease;
        let nic = NicId::from_uuid(Uuid::from_u128(0x5000_0000 + i as u128));
        let owner = TapOwner { network, nic, mac: lease.mac, address: lease.address };
        let kind = LinkKind::Tap(PortSettings { learning: true, flood: true });
        let link = Link { alias: owner.alias(), ..new_link(500 + i as u32, kind) };
        o.links.insert(instance().tap(nic), link);
        let service = o.services.entry(network).or_default();
        service.bindings.insert(Binding { mac: lease.mac, address: lease.address, client: None });
    }
}

fn is_own(o: &Observed, name: &str) -> bool {
    o.links.get(name).is_none_or(|l| {
        l.is_own_bridge(name, &instance())
            || l.is_own_overlay(name, &instance())
            || l.is_own_trunk(name, &instance())
            || l.own_tap(name, &instance()).is_some()
    })
}

/// Plans and carries out the first `limit` steps.
fn converge(o: &mut Observed, wanted: &[NetworkSpec], limit: usize) -> Plan {
    let made = plan(&instance(), &layout(), wanted, o);
    for step in made.steps.iter().take(limit) {
        if let Some(name) = touched(&step.op) {
            assert!(is_own(o, name), "{step:?} touches what Basin did not make");
        }
        apply(o, &step.op);
    }
    made
}

proptest! {
    #[test]
    fn a_plan_makes_it_so_and_then_there_is_nothing_to_do(
        server in servers(), first in specs(), second in specs(), cut in 0usize..40,
    ) {
        let mut o = server.clone();
        let made = converge(&mut o, &first, usize::MAX);
        start_machines(&mut o, &made);
        // Death in the middle, then another wish.
        converge(&mut o, &second, cut);
        let made = converge(&mut o, &second, usize::MAX);
        let again = plan(&instance(), &layout(), &second, &o);
        prop_assert!(again.steps.is_empty(), "{:#?}", again.steps);
        for network in &made.accepted {
            let link = &o.links[&instance().bridge(network.id)];
            prop_assert!(link.up && link.addresses.contains(&crate::spec::address(network)));
            let service = &o.services[&network.id];
            prop_assert_eq!(service.hosts.as_ref(), Some(&dnsmasq::hosts(network)));
            prop_assert!(service.process.is_some() && service.hosts_loaded);
        }
    }

    #[test]
    fn afterwards_the_server_is_as_before(
        server in servers(), first in specs(), cut in 0usize..40,
    ) {
        let mut o = server.clone();
        converge(&mut o, &first, cut);
        let made = converge(&mut o, &first, usize::MAX);
        start_machines(&mut o, &made);
        converge(&mut o, &[], cut);
        converge(&mut o, &[], usize::MAX);
        // Another daemon's bridge keeps forwarding on: only that may differ then.
        if o.links.values().any(|l| l.group == GROUP) {
            o.forwarding = server.forwarding.clone();
        }
        // An interface that a trunk has set up is left up.
        for name in ["eth0", "eth2"] {
            o.links.get_mut(name).unwrap().up = server.links[name].up;
        }
        prop_assert_eq!(o, server);
    }

    #[test]
    fn damage_is_repaired(server in servers(), wanted in specs(), hits in prop::collection::vec(0u8..16, 1..4)) {
        let mut o = server.clone();
        let made = converge(&mut o, &wanted, usize::MAX);
        start_machines(&mut o, &made);
        converge(&mut o, &wanted, usize::MAX);
        let good = o.clone();
        for hit in hits {
            damage(&mut o, hit);
        }
        converge(&mut o, &wanted, usize::MAX);
        let left = plan(&instance(), &layout(), &wanted, &o).steps;
        prop_assert!(left.is_empty(), "{:#?}", left);
        prop_assert_eq!(o.firewall, good.firewall);
    }
}

fn damage(o: &mut Observed, hit: u8) {
    let own: Vec<String> = o.links.keys().filter(|n| is_own(o, n)).cloned().collect();
    let mut bridges = own.iter().filter(|n| o.links[*n].is_own_bridge(n, &instance()));
    let Some(bridge) = bridges.next().cloned() else { return };
    let link = o.links.get_mut(&bridge).unwrap();
    match hit {
        0 => o.firewall = Firewall::Unknown,
        1 => link.up = false,
        2 => link.addresses.clear(),
        3 => link.sysctls.clear(),
        4 => link.kind = LinkKind::Bridge(BridgeSettings { stp: true, ..BridgeSettings::WANTED }),
        5 => {
            let index = link.index;
            apply(o, &Op::DeleteLink { name: bridge, index });
        }
        6 => o.services.values_mut().for_each(|s| s.process = None),
        7 => o.services.values_mut().for_each(|s| s.hosts = None),
        8 => o.links.values_mut().for_each(|l| {
            l.master = None;
            l.entries.clear();
        }),
        9 => o.links.values_mut().for_each(|l| l.forwards.clear()),
        10 => o.links.values_mut().for_each(|l| l.entries.clear()),
        11 => {
            let ports = o.links.iter().filter(|(n, l)| l.is_own_overlay(n, &instance()));
            let found = ports.map(|(name, l)| (name.clone(), l.index)).next();
            let Some((name, index)) = found else { return };
            apply(o, &Op::DeleteLink { name, index });
        }
        12 => {
            let ports = o.links.iter().filter(|(n, l)| l.is_own_trunk(n, &instance()));
            let found = ports.map(|(name, l)| (name.clone(), l.index)).next();
            let Some((name, index)) = found else { return };
            apply(o, &Op::DeleteLink { name, index });
        }
        13 => o.answer_rules.clear(),
        14 => o.answer_routes.clear(),
        _ => {
            // Somebody else's idea of where everything is.
            let to = place(9);
            for link in o.links.values_mut().filter(|l| matches!(l.kind, LinkKind::Vxlan(..))) {
                let wrong = |f: &Forward| Forward { to, ..*f };
                link.forwards = link.forwards.iter().map(wrong).collect();
            }
        }
    }
}

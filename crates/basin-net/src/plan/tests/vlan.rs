//! What a network that is a VLAN makes of the server, and what not.

use super::*;

fn server() -> Observed {
    let mut o = Observed::default();
    for (index, name) in [(2, "eth0"), (3, "eth1")] {
        let mac = Some(MacAddr([2, 0, 0, 9, 9, index as u8]));
        o.links.insert(name.into(), Link { mac, up: true, ..new_link(index, LinkKind::Other) });
    }
    let default = Ipv4Net::new(Ipv4Addr::UNSPECIFIED, 0).unwrap();
    o.routes.push(Route { to: default, device: Some("eth0".into()), local: false });
    o
}

fn vlan(n: u8, device: Option<&str>) -> NetworkSpec {
    NetworkSpec {
        id: id(n),
        subnet: Ipv4Net::new([10, 0, n, 0].into(), 24).unwrap(),
        gateway: [10, 0, n, 250].into(),
        domain: "vm".into(),
        leases: vec![],
        overlay: None,
        trunk: Some(trunk(n, n, device, 1500)),
    }
}

fn refusals(o: &Observed, wanted: &[NetworkSpec]) -> Vec<String> {
    let made = plan(&instance(), &layout(), wanted, o);
    made.refused.iter().map(|(_, e)| e.to_string()).collect()
}

#[test]
fn the_server_is_no_router_of_a_vlan() {
    let mut o = server();
    converge(&mut o, &[vlan(1, Some("eth1"))], usize::MAX);
    assert!(o.forwarding.on.is_empty() && o.forwarding.recorded.is_empty());
    let bridge = &o.links[&instance().bridge(id(1))];
    assert_eq!(bridge.sysctls[&Sysctl::Forwarding], 0);
    // How the server itself reaches the subnet is not said by the bridge's address.
    assert_eq!(bridge.addresses, ["10.0.1.250/32".parse().unwrap()].into());
    let Firewall::Loaded(rules) = &o.firewall else { panic!("no rules") };
    let text = rules.text(&instance());
    let name = instance().bridge(id(1));
    for line in [format!("iifname \"{name}\" drop"), format!("oifname \"{name}\" drop")] {
        assert!(text.contains(&line), "{text}");
    }
    assert!(!text.contains("masquerade"), "{text}");
    let service = o.services[&id(1)].process.as_ref().unwrap();
    let router = "--dhcp-option=option:router,10.0.1.254".to_owned();
    assert!(service.arguments.contains(&router), "{service:?}");
}

#[test]
fn another_interface_is_another_port() {
    let mut o = server();
    converge(&mut o, &[vlan(1, Some("eth0"))], usize::MAX);
    let port = instance().trunk(id(1));
    let parent = |o: &Observed| match o.links[&port].kind {
        LinkKind::Vlan(v, _) => v.parent,
        ref other => panic!("{other:?}"),
    };
    assert_eq!(parent(&o), 2);
    converge(&mut o, &[vlan(1, Some("eth1"))], usize::MAX);
    assert_eq!(parent(&o), 3);
    // Its guests stay where they are while it is gone.
    let made = converge(&mut o, &[vlan(1, Some("eth7"))], usize::MAX);
    assert!(!o.links.contains_key(&port) && o.links.contains_key(&instance().bridge(id(1))));
    assert_eq!(made.refused.len(), 1);
    assert_eq!(made.refused[0].0, Some(id(1)));
    assert!(made.refused[0].1.to_string().contains("eth7: there is no such interface"));
}

#[test]
fn an_interface_without_tags_is_one_vlans_port_and_comes_back() {
    let mut o = server();
    let untagged = |n: u8, device: &str| {
        let mut network = vlan(n, Some(device));
        network.trunk.as_mut().unwrap().tagged = false;
        network
    };
    let bridge = |o: &Observed, n| o.links.get(&instance().bridge(id(n))).map(|l| l.index);
    converge(&mut o, &[untagged(1, "eth1")], usize::MAX);
    assert_eq!(o.links["eth1"].master, bridge(&o, 1));
    assert!(!o.links.contains_key(&instance().trunk(id(1))));
    // To another network's bridge, and the first has a tag now.
    let now = [vlan(1, Some("eth0")), untagged(2, "eth1")];
    converge(&mut o, &now, usize::MAX);
    assert_eq!(o.links["eth1"].master, bridge(&o, 2));
    assert!(plan(&instance(), &layout(), &now, &o).steps.is_empty());
    // One cannot have what the other has, nor what the server is reached by.
    let said = refusals(&o, &[untagged(1, "eth1"), untagged(2, "eth1")]);
    assert!(said[0].contains("without tags already"), "{said:?}");
    let address = "192.0.2.9/24".parse().unwrap();
    o.links.get_mut("eth0").unwrap().addresses.insert(address);
    let said = refusals(&o, &[untagged(1, "eth0")]);
    assert!(said[0].contains("192.0.2.9/24"), "{said:?}");
    converge(&mut o, &[vlan(2, Some("eth0"))], usize::MAX);
    assert_eq!(o.links["eth1"].master, None);
    // Somebody else's port is not taken.
    o.links.insert("br0".into(), new_link(30, LinkKind::Bridge(BridgeSettings::WANTED)));
    o.links.get_mut("eth1").unwrap().master = Some(30);
    let said = refusals(&o, &[untagged(1, "eth1")]);
    assert!(said[0].contains("another bridge"), "{said:?}");
    converge(&mut o, &[], usize::MAX);
    assert_eq!(o.links["eth1"].master, Some(30));
}

#[test]
fn what_cannot_carry_a_vlan_says_why() {
    let check = |o: &Observed, wanted: &[NetworkSpec], expect: &str| {
        let said = refusals(o, wanted);
        assert!(said.iter().any(|s| s.contains(expect)), "{expect}: {said:?}");
    };
    let o = server();
    assert_eq!(refusals(&o, &[vlan(1, Some("eth1"))]), Vec::<String>::new());
    assert_eq!(refusals(&o, &[vlan(1, None)]), Vec::<String>::new(), "nobody wants one");
    let mut small = o.clone();
    small.links.get_mut("eth1").unwrap().mtu = 1400;
    check(&small, &[vlan(1, Some("eth1"))], "eth1 carries 1400");
    let mut taken = o.clone();
    let kind = LinkKind::Vlan(VlanSettings { vlan: 101, parent: 3 }, PortSettings::TRUNK);
    taken.links.insert("eth1.101".into(), new_link(9, kind));
    check(&taken, &[vlan(1, Some("eth1"))], "eth1.101");
    assert!(refusals(&taken, &[vlan(1, Some("eth0"))]).is_empty());
    let mut own = o.clone();
    let address = "10.0.1.250/16".parse().unwrap();
    own.links.get_mut("eth0").unwrap().addresses.insert(address);
    check(&own, &[vlan(1, Some("eth1"))], "10.0.1.250 is this server's own");
    let mut twice = vlan(2, Some("eth1"));
    twice.trunk.as_mut().unwrap().vlan = VlanId::new(101).unwrap();
    check(&o, &[vlan(1, Some("eth1")), twice], "VLAN 101 as well");
    // The server may well be in the subnet by itself: it is the operator's own network.
    let mut within = o.clone();
    let to = "10.0.1.0/24".parse().unwrap();
    within.routes.push(Route { to, device: Some("eth0".into()), local: false });
    assert!(refusals(&within, &[vlan(1, Some("eth1"))]).is_empty());
}

#[test]
fn answers_of_other_daemons_stay() {
    let mut o = server();
    let theirs = Link {
        group: GROUP,
        addresses: ["10.9.0.9/32".parse().unwrap()].into(),
        ..new_link(20, LinkKind::Bridge(BridgeSettings::WANTED))
    };
    o.links.insert("bbz-00000001".into(), theirs);
    o.answer_rules = [[10, 9, 0, 9].into(), [10, 9, 0, 10].into()].into();
    converge(&mut o, &[vlan(1, Some("eth1"))], usize::MAX);
    assert_eq!(o.answer_rules, [[10, 9, 0, 9].into(), [10, 0, 1, 250].into()].into());
    converge(&mut o, &[], usize::MAX);
    assert_eq!(o.answer_rules, [[10, 9, 0, 9].into()].into());
}

#[test]
fn a_guest_that_moves_away_is_heard_from_outside_and_one_that_stays_is_not() {
    let mut o = server();
    let mut network = vlan(1, Some("eth1"));
    for (last, to) in [(10, None), (11, Some(place(2)))] {
        network.leases.push(Lease {
            mac: MacAddr([2, 0, 0, 0, 1, last]),
            address: Ipv4Addr::new(10, 0, 1, last),
            name: format!("n{last}"),
            at: None,
            to,
        });
    }
    let made = converge(&mut o, &[network.clone()], usize::MAX);
    start_machines(&mut o, &made);
    converge(&mut o, &[network.clone()], usize::MAX);
    let Firewall::Loaded(rules) = &o.firewall else { panic!("no rules") };
    let kept = &rules.kept[&instance().trunk(id(1))];
    assert_eq!(kept.iter().map(|(mac, _)| mac.0[5]).collect::<Vec<_>>(), [10]);
    let entry = |o: &Observed, last: u8| {
        let mac = MacAddr([2, 0, 0, 0, 1, last]);
        o.links.values().find_map(|l| l.entries.get(&mac).copied())
    };
    assert_eq!((entry(&o, 10), entry(&o, 11)), (Some(Entry::Sticky), Some(Entry::Fixed)));
    // Its announcement has come in from the VLAN: it is not fetched back.
    let moved = MacAddr([2, 0, 0, 0, 1, 11]);
    for link in o.links.values_mut() {
        link.entries.remove(&moved);
    }
    let port = o.links.get_mut(&instance().trunk(id(1))).unwrap();
    port.entries.insert(moved, Entry::Learned);
    assert!(plan(&instance(), &layout(), &[network], &o).steps.is_empty());
}

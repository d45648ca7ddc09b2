//! What a plan does for interfaces on other servers, move by move.

use super::*;
use crate::overlay::Change;
use crate::plan::Step;

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);

fn network(at: Option<u8>, to: Option<u8>) -> NetworkSpec {
    let lease = |mac, last, at: Option<u8>, to: Option<u8>| Lease {
        mac,
        address: Ipv4Addr::new(10, 0, 0, last),
        name: format!("n{last}"),
        at: at.map(place),
        to: to.map(place),
    };
    // One guest stays on server 2, so that its floods are needed whatever moves.
    let other = MacAddr([0x52, 0x54, 0, 0, 0, 9]);
    NetworkSpec {
        id: id(1),
        subnet: "10.0.0.0/24".parse().unwrap(),
        gateway: [10, 0, 0, 1].into(),
        domain: "vm".into(),
        leases: vec![lease(MAC, 5, at, to), lease(other, 9, Some(2), None)],
        trunk: None,
        overlay: Some(super::overlay(1, 1450)),
    }
}

fn server() -> Observed {
    let mut o = Observed::default();
    let own = Ipv4Net::new(place(1), 24).unwrap();
    let eth0 = Link { addresses: [own].into(), ..new_link(2, LinkKind::Other) };
    o.links.insert("eth0".into(), eth0);
    o
}

fn tap(o: &mut Observed, network: &NetworkSpec) -> String {
    let nic = NicId::from_uuid(Uuid::from_u128(0x77));
    let address = network.leases[0].address;
    let owner = TapOwner { network: network.id, nic, mac: MAC, address };
    let kind = LinkKind::Tap(PortSettings { learning: true, flood: true });
    let name = instance().tap(nic);
    o.links.insert(name.clone(), Link { alias: owner.alias(), ..new_link(50, kind) });
    name
}

fn forward(to: u8, fixed: bool) -> Forward {
    Forward { mac: MAC, to: place(to), fixed }
}

fn flood(to: u8) -> Forward {
    Forward { mac: FLOOD, to: place(to), fixed: true }
}

fn port(o: &Observed) -> &Link {
    &o.links[&instance().overlay(id(1))]
}

fn ops(steps: Vec<Step>) -> Vec<Op> {
    steps.into_iter().map(|s| s.op).collect()
}

/// A machine moves between two others: only its entry changes, and it can be moved by
/// the announcement from its new server exactly as long as it moves.
#[test]
fn a_move_elsewhere_changes_one_entry_in_place() {
    let mut o = server();
    let step = |o: &mut Observed, at, to, expect: &[(Vec<Forward>, Vec<Forward>)]| {
        let wanted = [network(Some(at), to)];
        let steps = ops(converge(o, &wanted, usize::MAX).steps);
        let changes = steps.iter().filter_map(|op| match op {
            Op::SetForwards { change, .. } => Some(change.clone()),
            _ => None,
        });
        let change = |(set, remove): &(Vec<Forward>, Vec<Forward>)| Change {
            set: set.iter().copied().collect(),
            remove: remove.iter().copied().collect(),
        };
        assert_eq!(changes.collect::<Vec<_>>(), expect.iter().map(change).collect::<Vec<_>>());
        steps
    };
    step(
        &mut o,
        3,
        None,
        &[(
            vec![
                forward(3, true),
                Forward { mac: MacAddr([0x52, 0x54, 0, 0, 0, 9]), ..forward(2, true) },
                flood(2),
                flood(3),
            ],
            vec![],
        )],
    );
    // It is to move to server 2.
    let steps = step(&mut o, 3, Some(2), &[(vec![forward(3, false)], vec![])]);
    assert_eq!(steps.len(), 1, "nothing but that entry: {steps:?}");
    // Its announcement was heard from there: what the kernel learned stays.
    let name = instance().overlay(id(1));
    let link = o.links.get_mut(&name).unwrap();
    link.forwards.remove(&forward(3, false));
    link.forwards.insert(forward(2, false));
    step(&mut o, 3, Some(2), &[]);
    // The store says so too. Server 3 has no guest any more and hears no broadcasts.
    let steps = step(&mut o, 2, None, &[(vec![forward(2, true)], vec![flood(3)])]);
    assert_eq!(steps.len(), 1, "nothing but that entry: {steps:?}");
}

/// A machine leaves: its address becomes movable, and is not taken back once moved.
#[test]
fn a_machine_that_leaves_takes_its_address_along() {
    let mut o = server();
    let wanted = [network(None, None)];
    converge(&mut o, &wanted, usize::MAX);
    let tap = tap(&mut o, &wanted[0]);
    converge(&mut o, &wanted, usize::MAX);
    assert_eq!(o.links[&tap].entries.get(&MAC), Some(&Entry::Sticky));
    let leaving = [network(None, Some(3))];
    let steps = ops(converge(&mut o, &leaving, usize::MAX).steps);
    assert!(steps.contains(&Op::PinAddress { port: tap.clone(), mac: MAC, sticky: false }));
    // The announcement came from server 3.
    o.links.get_mut(&tap).unwrap().entries.clear();
    let name = instance().overlay(id(1));
    o.links.get_mut(&name).unwrap().entries.insert(MAC, Entry::Fixed);
    o.links.get_mut(&name).unwrap().forwards.insert(forward(3, false));
    let steps = converge(&mut o, &leaving, usize::MAX).steps;
    assert!(steps.is_empty(), "{steps:?}");
    // It is there. What still holds the tap here says nothing any more.
    converge(&mut o, &[network(Some(3), None)], usize::MAX);
    let Firewall::Loaded(rules) = &o.firewall else { panic!() };
    assert!(rules.taps.is_empty());
    assert!(port(&o).forwards.contains(&forward(3, true)));
}

/// A machine arrives: its tap is quiet until its first frame.
#[test]
fn a_machine_that_arrives_takes_its_address_with_its_first_frame() {
    let mut o = server();
    let arriving = [network(Some(3), Some(1))];
    converge(&mut o, &arriving, usize::MAX);
    let tap = tap(&mut o, &arriving[0]);
    converge(&mut o, &arriving, usize::MAX);
    assert_eq!(o.links[&tap].kind, LinkKind::Tap(PortSettings::ARRIVING));
    assert!(o.links[&tap].entries.is_empty(), "frames for it still go to server 3");
    assert!(port(&o).forwards.contains(&forward(3, false)));
    // The first frame.
    o.links.get_mut(&tap).unwrap().entries.insert(MAC, Entry::Learned);
    assert!(converge(&mut o, &arriving, usize::MAX).steps.is_empty());
    let here = [network(None, None)];
    converge(&mut o, &here, usize::MAX);
    assert_eq!(o.links[&tap].entries.get(&MAC), Some(&Entry::Sticky));
    assert_eq!(o.links[&tap].kind, LinkKind::Tap(PortSettings::GUEST));
    assert!(!port(&o).forwards.iter().any(|f| f.mac == MAC));
}

#[test]
fn a_server_that_cannot_carry_full_packets_says_so_and_serves_its_own() {
    let mut o = server();
    o.links.get_mut("eth0").unwrap().mtu = 1499;
    let made = converge(&mut o, &[network(Some(3), None)], usize::MAX);
    let text: Vec<String> = made.refused.iter().map(|(_, e)| e.to_string()).collect();
    assert!(text.len() == 1 && text[0].contains("raise the MTU of eth0 to 1500"), "{text:?}");
    assert!(o.links.contains_key(&instance().bridge(id(1))));
    assert!(!o.links.contains_key(&instance().overlay(id(1))));
    o.links.get_mut("eth0").unwrap().mtu = 1500;
    let made = converge(&mut o, &[network(Some(3), None)], usize::MAX);
    assert!(made.refused.is_empty() && o.links.contains_key(&instance().overlay(id(1))));
}

//! Networks that are VLANs: servers' guests and machines of the physical network are
//! on one wire, and what is a server's own stays on that server.

use std::net::Ipv4Addr;
use std::time::Duration;

use basin_model::MacAddr;
use basin_model::vlan::VlanId;

use super::crash::{partly, steps_left};
use super::packet::*;
use super::server::{Daemon, guest, in_namespace, lease, network, output, sh, uplink};
use super::servers::*;
use crate::fabric::{Fabric, Lease, NetworkSpec, Trunk};
use crate::linux::tap;
use crate::names::bridge_mac;

const NO_MACHINE: Lease = Lease {
    mac: MacAddr([0x02, 0, 0, 0, 0, 0x99]),
    address: Ipv4Addr::new(10, 77, 1, 99),
    name: String::new(),
    at: None,
    to: None,
};

/// How the servers have VLANs: each with its tag by the cable that they have anyway, or
/// without by a cable of its own.
#[derive(Clone, Copy, PartialEq)]
enum Wire {
    Tagged,
    Untagged,
}

/// All there are on this kernel: tags need its module 8021q.
fn wires() -> Vec<Wire> {
    match kernel_has_tags() {
        true => vec![Wire::Untagged, Wire::Tagged],
        false => vec![Wire::Untagged],
    }
}

fn kernel_has_tags() -> bool {
    output("ip link add link lo name probe type vlan id 9 && ip link del probe").status.success()
}

fn router(third: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, third, 1)
}

impl Wire {
    fn device(self, third: u8) -> String {
        if self == Wire::Tagged { "up0".to_owned() } else { format!("g{third}") }
    }

    fn spec(self, third: u8, local: Option<Ipv4Addr>) -> NetworkSpec {
        let trunk = Trunk {
            vlan: VlanId::new(100 + u16::from(third)).unwrap(),
            device: Some(self.device(third).parse().unwrap()),
            tagged: self == Wire::Tagged,
            router: router(third),
            mtu: 1500,
            local,
        };
        NetworkSpec {
            gateway: Ipv4Addr::new(10, 77, third, 254),
            trunk: Some(trunk),
            ..network(third)
        }
    }

    /// Lays the cables, and puts a machine of the physical network in the test's
    /// namespace: its kernel answers for the router.
    fn lay(self, third: u8, servers: &[Server; 3]) {
        let router = router(third);
        if self == Wire::Tagged {
            let id = 100 + u16::from(third);
            sh(&format!(
                "ip link add link sw name sw.{id} type vlan id {id} && \
                 ip addr add {router}/24 dev sw.{id} && ip link set sw.{id} up"
            ));
            return;
        }
        sh(&format!(
            "ip link add sv{third} type bridge forward_delay 0 mcast_snooping 0 && \
             ip addr add {router}/24 dev sv{third} && ip link set sv{third} up"
        ));
        for (n, server) in servers.iter().enumerate() {
            sh(&format!(
                "ip link add v{third}p{n} type veth peer name g{third} netns {} && \
                 ip link set v{third}p{n} master sv{third} up && ip -n {} link set g{third} up",
                server.namespace, server.namespace
            ));
        }
    }

    fn clear(self, third: u8) {
        let link = if self == Wire::Tagged {
            format!("sw.{}", 100 + u16::from(third))
        } else {
            format!("sv{third}")
        };
        sh(&format!("ip link del {link}"));
    }
}

/// Somebody with a cable in the switch, who sends and hears any frames of one VLAN.
struct Cable {
    end: Guest,
    tag: Option<[u8; 4]>,
}

impl Cable {
    fn new(wire: Wire, third: u8) -> Cable {
        let name = format!("cable{third}");
        let fd = tap::create(&name).unwrap();
        let switch = if wire == Wire::Tagged { "sw".to_owned() } else { format!("sv{third}") };
        sh(&format!(
            "ip link set {name} addrgenmode none && ip link set {name} master {switch} up"
        ));
        let end = Guest::new(fd, new_nic(), &NO_MACHINE, Ipv4Addr::UNSPECIFIED);
        Cable { end, tag: (wire == Wire::Tagged).then_some([0x81, 0, 0, 100 + third]) }
    }

    fn send(&self, frame: &[u8]) {
        let tag = self.tag.as_ref().map_or(&[][..], |t| &t[..]);
        self.end.send(&[&frame[..12], tag, &frame[12..]].concat());
    }

    /// The frame as it is in the VLAN.
    fn plain(&self, frame: &[u8]) -> Option<Vec<u8>> {
        match self.tag {
            None => Some(frame.to_vec()),
            Some(tag) if frame.get(12..16)? == tag => Some([&frame[..12], &frame[16..]].concat()),
            Some(_) => None,
        }
    }

    fn hears(&self, pick: impl Fn(&[u8]) -> Option<()>) {
        self.end.hears(|f| pick(&self.plain(f)?));
    }

    fn hears_nothing(&self, pick: impl Fn(&[u8]) -> Option<()>) {
        self.end.hears_nothing(|f| pick(&self.plain(f)?));
    }
}

fn text(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    ip(from, to, 17, &udp(1000, 2000, b"from outside"))
}

#[test]
fn guests_and_machines_of_a_vlan_are_one_network() {
    in_cluster("linux::tests::vlan::guests_and_machines_of_a_vlan_are_one_network", |servers| {
        wires().into_iter().for_each(|wire| one_network(&servers, wire));
    });
}

fn one_network(servers: &[Server; 3], wire: Wire) {
    let [a, b, _] = servers;
    wire.lay(1, servers);
    wire.lay(2, servers);
    let links = format!("ip -o -d link show {}; ip rule; nft list ruleset", wire.device(1));
    let before = a.sh(&links);
    let mut net = wire.spec(1, Some(a.address));
    let mut apart = wire.spec(2, Some(a.address));
    let leases = [lease_at(&mut net, 10, a), lease_at(&mut net, 11, b)];
    let stranger = lease_at(&mut apart, 12, b);
    sync_all(servers, &[&net, &apart]);
    let (one, two) = (a.guest(&net, &leases[0]), b.guest(&net, &leases[1]));
    let stranger = b.guest(&apart, &stranger);
    for guest in [&one, &two] {
        // By its own server: the address, and that another machine is the router.
        let reply = guest.bind_by(router(1));
        assert_eq!(reply.address, guest.address);
        assert_eq!(guest.resolve(net.gateway), bridge_mac(net.id));
        guest.announce();
        guest.send_ip(bridge_mac(net.id), net.gateway, 1, &ping(1));
        assert_eq!(guest.hears(pong), net.gateway);
        let named = guest.ask("vm11.vm.test", 1).unwrap();
        assert_eq!(named, two.address.octets());
        // The machine of the physical network, and it them.
        let machine = guest.resolve(router(1));
        guest.announce();
        guest.send_ip(machine, router(1), 1, &ping(1));
        assert_eq!(guest.hears(pong), router(1));
    }
    let found = std::thread::scope(|scope| {
        scope.spawn(|| two.answer_arp());
        one.resolve(two.address)
    });
    assert_eq!(found, two.mac);
    for (from, to) in [(&one, &two), (&two, &one)] {
        // A packet as large as Ethernet's own.
        let data = udp(1000, 2000, &[0x5a; 1500 - 28]);
        let packet = ip(from.address, to.address, 17, &data);
        from.send(&ethernet(to.mac, from.mac, 0x0800, &packet));
        to.hears(|f| (f.len() == 1514).then_some(()));
    }
    stranger.drain();
    one.announce();
    one.tell(&stranger, b"across");
    stranger.hears_nothing(|f| (f.get(6..12)? == one.mac.0).then_some(()));
    // The server itself reaches the subnet as it did: by its router.
    assert!(a.sh("ip route get 10.77.1.1").contains(&format!("via {STRANGER}")));
    // All of it goes away.
    for server in servers {
        assert_eq!(server.steps_left(&[seen_by(server, &net), seen_by(server, &apart)]), [""; 0]);
        server.sync(&[]);
        assert_eq!(server.sh("ip -o link show type vlan; ip -o link show type bridge"), "");
        assert_eq!(server.files(), Vec::<String>::new());
    }
    assert_eq!(a.sh(&links), before);
    wire.clear(1);
    wire.clear(2);
}

#[test]
fn what_is_a_servers_own_stays_on_it() {
    in_cluster("linux::tests::vlan::what_is_a_servers_own_stays_on_it", |servers| {
        wires().into_iter().for_each(|wire| own_things(&servers, wire));
    });
}

fn own_things(servers: &[Server; 3], wire: Wire) {
    let [a, b, _] = servers;
    wire.lay(1, servers);
    let mut net = wire.spec(1, Some(a.address));
    let leases = [10, 11].map(|n| lease_at(&mut net, n, a));
    let elsewhere = lease_at(&mut net, 12, b);
    sync_all(servers, &[&net]);
    let [one, two] = leases.map(|l| a.guest(&net, &l));
    let elsewhere = b.guest(&net, &elsewhere);
    let cable = Cable::new(wire, 1);
    let (me, address) = (NO_MACHINE.mac, NO_MACHINE.address);
    let service = bridge_mac(net.id);

    // A machine of the VLAN is heard, by all guests.
    cable.send(&ethernet(BROADCAST, me, 0x0800, &text(address, one.address)));
    for guest in [&one, &two, &elsewhere] {
        guest.is_told_by(b"from outside");
    }
    let own = a.sh(&format!("cat /sys/class/net/{}/address", wire.device(1)));
    let own: MacAddr = own.trim().parse().unwrap();
    let plain = text(address, one.address);
    let inner = [&[0, 7, 8, 0][..], &plain].concat();
    let offer = ip(address, one.address, 17, &udp(67, 68, b"from outside"));
    let claim = |mac: MacAddr, from: Ipv4Addr| cable.end.arp(mac, from, one.address);
    let arp = |mac: MacAddr, from: Ipv4Addr| {
        let mut frame = claim(mac, from);
        frame[6..12].copy_from_slice(&me.0);
        frame
    };
    for (what, frame) in [
        ("a guest's MAC", ethernet(BROADCAST, one.mac, 0x0800, &plain)),
        ("a guest's address", ethernet(BROADCAST, me, 0x0800, &text(one.address, two.address))),
        ("the service's MAC", ethernet(BROADCAST, service, 0x0800, &plain)),
        ("the service's address", ethernet(BROADCAST, me, 0x0800, &text(net.gateway, two.address))),
        ("a tag inside", ethernet(BROADCAST, me, 0x8100, &inner)),
        ("another tag inside", ethernet(BROADCAST, me, 0x88a8, &inner)),
        ("IPv6", ethernet(BROADCAST, me, 0x86dd, &[0x60; 60])),
        ("a DHCP server", ethernet(BROADCAST, me, 0x0800, &offer)),
        ("a claim of a guest's address", arp(me, one.address)),
        ("a claim of the service's address", arp(me, net.gateway)),
        ("a claim in a guest's name", arp(one.mac, address)),
    ] {
        two.drain();
        cable.send(&frame);
        let came = two.find(Duration::from_millis(100), |f| Some(f.to_vec()));
        assert_eq!(came, None, "{what} came through");
    }
    // Nobody outside is answered by a server, whatever it is asked.
    cable.end.drain();
    let from_server = |f: &[u8]| {
        let mac: [u8; 6] = f.get(6..12)?.try_into().ok()?;
        let kind = f.get(12..14)?;
        // What the interface says by itself in IPv6 it said before.
        let speaks = kind == [8, 0] || kind == [8, 6];
        (speaks && (mac == service.0 || mac == own.0)).then_some(())
    };
    cable.send(&cable.end.arp(me, address, net.gateway));
    cable.hears_nothing(from_server);
    for to in [BROADCAST, service, own] {
        let packet = ip(address, net.gateway, 1, &ping(1));
        cable.send(&ethernet(to, me, 0x0800, &packet));
        let packet = ip(address, a.address, 1, &ping(1));
        cable.send(&ethernet(to, me, 0x0800, &packet));
        cable.hears_nothing(from_server);
    }
    // Nor is a guest asked or heard outside about what its server is there for.
    cable.end.drain();
    one.acquire_by(&net);
    one.announce();
    one.resolve(net.gateway);
    cable.hears_nothing(|f| {
        let about = f.get(38..42)? == net.gateway.octets();
        let dhcp = f.get(23)? == &17 && f.get(36..38)? == [0, 67];
        (about || dhcp).then_some(())
    });
    // A guest does not route by the server.
    one.send_ip(service, STRANGER, 1, &ping(1));
    one.hears_nothing(pong);
    cable.hears_nothing(|f| (f.get(12..14)? == [8, 0] && f.get(23)? == &1).then_some(()));
    servers.iter().for_each(|s| s.sync(&[]));
    wire.clear(1);
}

#[test]
fn a_machine_that_moves_is_reached_from_the_physical_network() {
    let name = "linux::tests::vlan::a_machine_that_moves_is_reached_from_the_physical_network";
    in_cluster(name, |servers| {
        wires().into_iter().for_each(|wire| a_move(&servers, wire));
    });
}

fn a_move(servers: &[Server; 3], wire: Wire) {
    let [a, b, _] = servers;
    wire.lay(1, servers);
    let mut net = wire.spec(1, Some(a.address));
    let moved = lease_at(&mut net, 10, a);
    let leases = [lease_at(&mut net, 11, a), lease_at(&mut net, 12, b)];
    sync_all(servers, &[&net]);
    let guests = [a.guest(&net, &leases[0]), b.guest(&net, &leases[1])];
    let machine = a.tap(&net, new_nic(), &moved);
    let cable = Cable::new(wire, 1);
    let all_reach = |at: &Guest| {
        for guest in &guests {
            guest.tell(at, b"to the machine");
            at.is_told(b"to the machine");
            at.tell(guest, b"from the machine");
            guest.is_told(b"from the machine");
        }
        // By its MAC alone: the switch, and each bridge, know where that is.
        cable.send(&ethernet(
            moved.mac,
            NO_MACHINE.mac,
            0x0800,
            &text(NO_MACHINE.address, moved.address),
        ));
        at.is_told_by(b"from outside");
    };
    machine.announce();
    all_reach(&machine);
    place(&mut net, moved.mac, a, Some(b));
    sync_all(servers, &[&net]);
    let arrived = b.tap(&net, machine.nic, &moved);
    all_reach(&machine);
    // It runs on B, and no daemon knows.
    cable.end.drain();
    arrived.arrive();
    let announced = |f: &[u8]| (f.get(12..14)? == [0x80, 0x35]).then_some(());
    cable.hears(announced);
    // When A has heard it as well:
    guests[0].hears(|f| (f.get(12..14)? == [0x80, 0x35]).then_some(()));
    machine.drain();
    all_reach(&arrived);
    sync_all(servers, &[&net]);
    all_reach(&arrived);
    machine.hears_nothing(|f| udp_payload(f).map(|_| ()));
    // The store says B. What is left on A is nobody.
    place(&mut net, moved.mac, b, None);
    sync_all(servers, &[&net]);
    machine.tell(&guests[1], b"a ghost");
    guests[1].is_not_told(b"a ghost");
    all_reach(&arrived);
    a.close(machine.nic);
    drop(machine);
    all_reach(&arrived);
    for server in servers {
        assert_eq!(server.steps_left(&[seen_by(server, &net)]), Vec::<String>::new());
    }
    servers.iter().for_each(|s| s.sync(&[]));
    wire.clear(1);
}

#[test]
fn an_interface_that_goes_takes_nothing_else_along() {
    in_cluster("linux::tests::vlan::an_interface_that_goes_takes_nothing_else_along", |servers| {
        let [a, ..] = &servers;
        let mut net = Wire::Untagged.spec(1, Some(a.address));
        let leases = [10, 11].map(|n| lease_at(&mut net, n, a));
        let failed = a.try_sync(&[net.clone()]).unwrap_err();
        assert!(failed.to_string().contains("g1: there is no such interface"), "{failed}");
        assert!(a.trunk_mtu("g1").is_err());
        let plug = "ip link add g1 type veth peer name other && ip link set other up";
        a.sh(plug);
        assert_eq!(a.trunk_mtu("g1"), Ok(1500));
        a.sync(&[net.clone()]);
        // It was down, and nothing passes one that is down.
        assert!(a.sh("ip -o link show g1").contains(",UP"));
        let [one, two] = leases.map(|l| a.guest(&net, &l));
        a.sh("ip link del g1");
        a.try_sync(&[net.clone()]).unwrap_err();
        one.tell(&two, b"still");
        two.is_told(b"still");
        a.sh(plug);
        a.sync(&[net.clone()]);
        assert_eq!(a.steps_left(&[net.clone()]), Vec::<String>::new());
        // What the server itself is reached by is not taken from it.
        a.sh("ip addr add 203.0.113.1/24 dev g1");
        let failed = a.trunk_mtu("g1").unwrap_err();
        assert!(failed.contains("203.0.113.1/24"), "{failed}");
    });
}

#[test]
fn a_vlan_has_its_tag_or_the_kernel_is_said_to_have_none() {
    let name = "linux::tests::vlan::a_vlan_has_its_tag_or_the_kernel_is_said_to_have_none";
    in_cluster(name, |servers| {
        let [a, ..] = &servers;
        let mut net = Wire::Tagged.spec(1, Some(a.address));
        let leases = [10, 11].map(|n| lease_at(&mut net, n, a));
        let made = a.try_sync(&[net.clone()]);
        if kernel_has_tags() {
            made.unwrap();
            assert!(a.sh("ip -d link show type vlan").contains("id 101"));
            a.sync(&[]);
            // The operator's own is not taken over.
            a.sh("ip link add link up0 name own type vlan id 101");
            let failed = a.try_sync(&[net.clone()]).unwrap_err();
            assert!(failed.to_string().contains("interface own of this server"), "{failed}");
        } else {
            let failed = made.unwrap_err().to_string();
            assert!(failed.contains("load the kernel module 8021q"), "{failed}");
        }
        a.sync(&[]);
        assert_eq!(a.sh("ip -o link show type bridge; nft list ruleset"), "");
        assert!(a.files().is_empty() && !leases.is_empty());
    });
}

#[test]
fn death_between_any_two_steps_of_a_vlan_is_made_good() {
    let name = "linux::tests::vlan::death_between_any_two_steps_of_a_vlan_is_made_good";
    in_namespace(name, || async {
        uplink();
        sh(
            "ip link add g1 type veth peer name other && ip link set g1 addrgenmode none up && ip link set other addrgenmode none up",
        );
        sh("until ip -o link show g1 | grep -q 'state UP'; do sleep 0.05; done");
        let looks = "nft list ruleset; ip -o link; ip rule; ip -4 route show table all; \
                     sysctl net.ipv4.conf.up0.forwarding";
        let before = sh(looks);
        for count in 0.. {
            let daemon = Daemon::new("a");
            let mut net = Wire::Untagged.spec(1, None);
            let lease = lease(&mut net, 10);
            let nets = [net.clone()];
            let made_all = partly(&daemon.start(), &nets, count).await;
            let fabric = daemon.start();
            fabric.sync(&nets).await.unwrap();
            assert_eq!(steps_left(&fabric, &nets).await, Vec::<String>::new(), "after {count}");
            let guest = guest(&fabric, &net, &lease).await;
            assert_eq!(guest.bind_by(router(1)).address, lease.address);
            drop(guest);
            let removed_all = partly(&daemon.start(), &[], count).await;
            daemon.start().sync(&[]).await.unwrap();
            assert_eq!(daemon.processes(), 0, "after {count}");
            assert_eq!(daemon.files(), Vec::<String>::new(), "after {count}");
            assert_eq!(before, sh(looks), "after {count}");
            if made_all && removed_all {
                assert!(count > 10);
                break;
            }
        }
    });
}

impl Guest {
    fn is_told_by(&self, text: &[u8]) {
        self.hears(|f| (udp_payload(f)?.1 == text).then_some(()));
    }

    fn acquire_by(&self, net: &NetworkSpec) {
        let router = net.trunk.as_ref().unwrap().router;
        assert_eq!(self.bind_by(router).address, self.address);
    }
}

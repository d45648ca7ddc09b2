//! What others on the servers' own network can do to guests, what a guest can do to
//! other servers, and what is repaired.

use std::net::{Ipv4Addr, UdpSocket};

use basin_model::MacAddr;

use super::packet::*;
use super::server::*;
use super::servers::*;
use crate::names::bridge_mac;

/// A datagram from one interface to a guest, as a frame.
fn frame(to: &Guest, from: &Guest, address: Ipv4Addr, text: &[u8]) -> Vec<u8> {
    let packet = ip(address, to.address, 17, &udp(1000, 2000, text));
    ethernet(to.mac, from.mac, 0x0800, &packet)
}

#[test]
fn forged_frames_are_dropped() {
    in_cluster("linux::tests::underlay::forged_frames_are_dropped", |servers| {
        let [a, b, c] = &servers;
        let mut net = spanning(1, &[a, b, c]);
        let leases = [
            lease_at(&mut net, 10, a),
            lease_at(&mut net, 11, b),
            lease_at(&mut net, 12, c),
            lease_at(&mut net, 13, a),
        ];
        sync_all(&servers, &[&net]);
        let one = a.guest(&net, &leases[0]);
        let two = b.guest(&net, &leases[1]);
        let three = c.guest(&net, &leases[2]);
        let four = a.guest(&net, &leases[3]);
        // The way in that is right: from the server that the interface is on.
        b.inject(&net, a, &frame(&one, &two, two.address, b"right"));
        one.is_told(b"right");
        // Somebody else on the underlay.
        let outside = UdpSocket::bind((STRANGER, 0)).unwrap();
        let stranger = |f: &[u8]| outside.send_to(&vxlan(&net, f), (a.address, 4789)).unwrap();
        stranger(&frame(&one, &two, two.address, b"stranger"));
        one.is_not_told(b"stranger");
        // A server, of interfaces that are not its own.
        let forged = |what: &[u8], f: Vec<u8>| {
            b.inject(&net, a, &f);
            one.is_not_told(what);
        };
        forged(b"of another server", frame(&one, &three, three.address, b"of another server"));
        forged(b"of that server", frame(&one, &four, four.address, b"of that server"));
        forged(b"of itself", frame(&one, &one, one.address, b"of itself"));
        forged(b"another address", frame(&one, &two, three.address, b"another address"));
        let packet = ip(two.address, one.address, 17, &udp(1000, 2000, b"nobody"));
        forged(b"nobody", ethernet(one.mac, mac(99), 0x0800, &packet));
        let packet = ip(net.gateway, one.address, 17, &udp(1000, 2000, b"gateway"));
        forged(b"gateway", ethernet(one.mac, bridge_mac(net.id), 0x0800, &packet));
        let offer = ip(two.address, one.address, 17, &udp(67, 68, b"offer"));
        b.inject(&net, a, &ethernet(one.mac, two.mac, 0x0800, &offer));
        one.hears_nothing(|f| (udp_payload(f)? == (67, b"offer")).then_some(()));
        let request = |f: &[u8]| (f.get(12..14)? == [8, 6]).then_some(());
        b.inject(&net, a, &two.arp(two.mac, three.address, one.address));
        b.inject(&net, a, &two.arp(two.mac, net.gateway, one.address));
        b.inject(&net, a, &two.arp(two.mac, two.address, net.gateway));
        one.hears_nothing(request);
        b.inject(&net, a, &ethernet(BROADCAST, mac(99), 0x8035, &[0; 46]));
        one.hears_nothing(|f| (f.get(12..14)? == [0x80, 0x35]).then_some(()));
        // To the server itself by its gateway's MAC.
        a.sh("nft 'table inet spy { chain input { type filter hook input priority -100; \
             iifname bba-* ip saddr 10.77.1.11 counter; }; }'");
        let echo = ip(two.address, net.gateway, 1, &ping(1));
        b.inject(&net, a, &ethernet(bridge_mac(net.id), two.mac, 0x0800, &echo));
        b.inject(&net, a, &frame(&one, &two, two.address, b"behind it"));
        one.is_told(b"behind it");
        assert!(a.sh("nft list table inet spy").contains("packets 0"));
        // Nothing of this has moved anybody's place: all still hear each other.
        for (from, to) in
            [(&one, &three), (&three, &one), (&one, &four), (&two, &four), (&four, &two)]
        {
            from.tell(to, b"as ever");
            to.is_told(b"as ever");
        }
        // A guest that speaks to another server has this server's address there.
        let inner = frame(&one, &two, two.address, b"by translation");
        let gateway = two.resolve(net.gateway);
        two.send_ip(gateway, a.address, 17, &udp(5000, 4789, &vxlan(&net, &inner)));
        one.is_not_told(b"by translation");
        // It still reaches that server otherwise.
        two.send_ip(gateway, a.address, 1, &ping(2));
        two.announce();
        assert_eq!(two.hears(pong), a.address);
    });
}

/// Even without any rules at all, no frame moves an interface that does not move.
#[test]
fn a_place_is_not_stolen_though_the_rules_are_gone() {
    in_cluster(
        "linux::tests::underlay::a_place_is_not_stolen_though_the_rules_are_gone",
        |servers| {
            let [a, b, c] = &servers;
            let mut net = spanning(1, &[a, b, c]);
            let leases = [
                lease_at(&mut net, 10, a),
                lease_at(&mut net, 11, b),
                lease_at(&mut net, 12, c),
                lease_at(&mut net, 13, a),
            ];
            sync_all(&servers, &[&net]);
            let one = a.guest(&net, &leases[0]);
            let two = b.guest(&net, &leases[1]);
            let three = c.guest(&net, &leases[2]);
            let four = a.guest(&net, &leases[3]);
            for server in &servers {
                server.sh("nft flush ruleset");
            }
            // A guest of B says that it is one of A's, C's, and another of B's neighbours.
            for victim in [&one, &three, &four] {
                two.send(&frame(&one, victim, victim.address, b"thief"));
                two.send(&ethernet(BROADCAST, victim.mac, 0x8035, &[0; 46]));
                let lldp = MacAddr([1, 0x80, 0xc2, 0, 0, 0x0e]);
                two.send(&ethernet(lldp, victim.mac, 0x88cc, b"thief"));
            }
            // On a server where it is not, its place was learned or not: not where it is.
            for (from, to) in [(&one, &three), (&three, &one), (&one, &four), (&three, &four)] {
                from.tell(to, b"not stolen");
                to.is_told(b"not stolen");
            }
        },
    );
}

#[test]
fn what_others_break_between_servers_is_repaired() {
    in_cluster(
        "linux::tests::underlay::what_others_break_between_servers_is_repaired",
        |servers| {
            let [a, b, c] = &servers;
            let mut net = spanning(1, &[a, b, c]);
            let leases = [lease_at(&mut net, 10, a), lease_at(&mut net, 11, b)];
            sync_all(&servers, &[&net]);
            let one = a.guest(&net, &leases[0]);
            let two = b.guest(&net, &leases[1]);
            let (port, there) = (a.overlay(&net), b.address);
            let mine = [seen_by(a, &net)];
            for damage in [
                format!("ip link del {port}"),
                format!("ip link set {port} down"),
                format!("ip link set {port} nomaster"),
                format!("ip link set {port} mtu 1000"),
                format!("ip link set {port} type vxlan nolearning"),
                format!("ip link set {port} type bridge_slave learning off flood off"),
                format!(
                    "for m in \\$(bridge fdb show dev {port} | grep -o '^[0-9a-f:]*'); do \
                     bridge fdb del \\$m dev {port} dst {there}; done"
                ),
                format!("bridge fdb replace {} dev {port} dst {STRANGER} self permanent", two.mac),
                format!("bridge fdb append 00:00:00:00:00:00 dev {port} dst {STRANGER}"),
                "for p in \\$(ip -o link show type tun | grep -o 'bta-[0-9a-f]*'); do \
             ip link set \\$p type bridge_slave fdb_flush; done"
                    .to_owned(),
                "nft flush set bridge basin_a heard".to_owned(),
                "nft flush set inet basin_a paths".to_owned(),
                "nft flush ruleset".to_owned(),
            ] {
                a.sync(&mine);
                a.sh(&damage);
                a.sync(&mine);
                assert_eq!(a.steps_left(&mine), Vec::<String>::new(), "{damage}");
                one.drain();
                one.tell(&two, b"there");
                two.is_told(b"there");
                two.tell(&one, b"and back");
                one.is_told(b"and back");
                let entries = a.sh(&format!("bridge fdb show dev {port}"));
                assert!(!entries.contains(&format!("{STRANGER} ")), "{damage}: {entries}");
            }
        },
    );
}

/// The daemon dies at each step of beginning and of ceasing to span servers.
#[test]
fn death_between_any_two_steps_is_made_good_between_servers() {
    in_cluster(
        "linux::tests::underlay::death_between_any_two_steps_is_made_good_between_servers",
        |servers| {
            let [a, b, c] = &servers;
            let mut net = spanning(1, &[a, b, c]);
            let leases = [lease_at(&mut net, 10, a), lease_at(&mut net, 11, b)];
            b.sync(&[seen_by(b, &net)]);
            let two = b.guest(&net, &leases[1]);
            let mine = [seen_by(a, &net)];
            let mut alone = mine.clone();
            alone[0].overlay = None;
            a.sync(&alone);
            let one = a.guest(&net, &leases[0]);
            let before = a.sh("ip -o link; bridge fdb show");
            for count in 0.. {
                let made_all = a.partly(&mine, count);
                a.sync(&mine);
                assert_eq!(a.steps_left(&mine), Vec::<String>::new(), "after {count}");
                one.tell(&two, b"there");
                two.is_told(b"there");
                two.tell(&one, b"and back");
                one.is_told(b"and back");
                let removed_all = a.partly(&alone, count);
                a.sync(&alone);
                assert_eq!(a.steps_left(&alone), Vec::<String>::new(), "after {count}");
                let after = a.sh("ip -o link; bridge fdb show");
                assert_eq!(before, after, "after {count}");
                one.drain();
                if made_all && removed_all {
                    assert!(count > 4);
                    break;
                }
            }
        },
    );
}

//! What guests do not get: others' addresses, other networks, the server.

use std::net::{Ipv4Addr, TcpListener};

use basin_model::MacAddr;

use super::packet::*;
use super::server::*;
use crate::fabric::Fabric;

/// A UDP datagram to the test's port, wherever it is.
fn probe(frame: &[u8]) -> Option<()> {
    // Behind a VLAN tag or in IPv6 it is further on.
    frame.windows(9).any(|w| w == b"spoofed!?").then_some(())
}

#[test]
fn a_guest_speaks_as_itself_only() {
    in_namespace("linux::tests::guard::a_guest_speaks_as_itself_only", || async {
        let daemon = Daemon::new("a");
        let fabric = daemon.start();
        let mut net = network(1);
        let (bad, good) = (lease(&mut net, 10), lease(&mut net, 11));
        fabric.sync(&[net.clone()]).await.unwrap();
        let bad = guest(&fabric, &net, &bad).await;
        let good = guest(&fabric, &net, &good).await;
        let other = Ipv4Addr::new(10, 77, 1, 99);
        let data = udp(1000, 2000, b"spoofed!?");
        let packet = |from| ip(from, good.address, 17, &data);

        // The same as itself arrives.
        bad.send(&ethernet(good.mac, bad.mac, 0x0800, &packet(bad.address)));
        good.hears(probe);

        let mine = packet(bad.address);
        let tagged = [&[0, 5, 8, 0][..], &mine].concat();
        let doubly = [&[0, 5, 0x81, 0, 0, 6, 8, 0][..], &mine].concat();
        let offer = ip(bad.address, good.address, 17, &udp(67, 68, b"spoofed!?"));
        let advert = [&[0x60, 0, 0, 0, 0, 9, 58, 255][..], &[0xfe; 32], b"spoofed!?"].concat();
        let frames = [
            ("another's address", ethernet(good.mac, bad.mac, 0x0800, &packet(other))),
            ("another's MAC", ethernet(good.mac, mac(99), 0x0800, &mine)),
            ("the gateway's address", ethernet(good.mac, bad.mac, 0x0800, &packet(net.gateway))),
            ("no address", ethernet(good.mac, bad.mac, 0x0800, &packet(Ipv4Addr::UNSPECIFIED))),
            ("a VLAN", ethernet(good.mac, bad.mac, 0x8100, &tagged)),
            ("a VLAN in a VLAN", ethernet(good.mac, bad.mac, 0x88a8, &doubly)),
            ("a DHCP server", ethernet(good.mac, bad.mac, 0x0800, &offer)),
            ("IPv6", ethernet(good.mac, bad.mac, 0x86dd, &advert)),
            ("another protocol", ethernet(good.mac, bad.mac, 0x88b5, b"spoofed!?")),
        ];
        for (what, frame) in frames {
            bad.send(&frame);
            assert!(
                good.find(std::time::Duration::from_millis(150), probe).is_none(),
                "{what} came through"
            );
        }
        let request = |f: &[u8]| (f.get(12..14)? == [8, 6]).then_some(());
        bad.send(&bad.arp(bad.mac, other, good.address));
        good.hears_nothing(request);
        bad.send(&bad.arp(good.mac, good.address, bad.address));
        good.hears_nothing(request);
        bad.send(&bad.arp(bad.mac, Ipv4Addr::UNSPECIFIED, bad.address));
        good.hears(request);

        // LLDP bypasses the rules and would teach the bridge: the other still gets its own.
        let lldp = MacAddr([1, 0x80, 0xc2, 0, 0, 0x0e]);
        bad.send(&ethernet(lldp, good.mac, 0x88cc, b"spoofed!?"));
        good.acquire();
        let gateway = good.resolve(net.gateway);
        good.send_ip(gateway, net.gateway, 1, &ping(1));
        assert_eq!(good.hears(pong), net.gateway);
    });
}

#[test]
fn networks_are_apart_and_the_server_is_hidden() {
    in_namespace("linux::tests::guard::networks_are_apart_and_the_server_is_hidden", || async {
        uplink();
        let (daemon, second) = (Daemon::new("a"), Daemon::new("b"));
        let (fabric, other) = (daemon.start(), second.start());
        let (mut net, mut apart, mut foreign) = (network(1), network(2), network(3));
        let leases = [lease(&mut net, 10), lease(&mut apart, 10), lease(&mut foreign, 10)];
        fabric.sync(&[net.clone(), apart.clone()]).await.unwrap();
        other.sync(&[foreign.clone()]).await.unwrap();
        let me = guest(&fabric, &net, &leases[0]).await;
        let neighbours =
            [guest(&fabric, &apart, &leases[1]).await, guest(&other, &foreign, &leases[2]).await];
        let gateway = me.resolve(net.gateway);
        me.announce();
        for neighbour in &neighbours {
            neighbour.announce();
            me.send_ip(gateway, neighbour.address, 17, &udp(1, 2, b"spoofed!?"));
            neighbour.hears_nothing(probe);
            // Nor their gateways.
            me.send_ip(gateway, neighbour.gateway, 1, &ping(1));
            me.hears_nothing(pong);
            // They work for their own.
            assert_eq!(neighbour.acquire(), neighbour.address);
        }
        // A service of the server: a right SYN gets no SYN in return, from no address.
        let _service = TcpListener::bind("0.0.0.0:7777").unwrap();
        let answered = |f: &[u8]| {
            (f.get(12..14)? == [8, 0] && *f.get(23)? == 6 && f.get(47)? & 2 != 0).then_some(())
        };
        for address in [net.gateway, UPLINK] {
            me.send_ip(gateway, address, 6, &syn(me.address, address, 7777));
            me.hears_nothing(answered);
        }
        me.send_ip(gateway, net.gateway, 1, &ping(1));
        assert_eq!(me.hears(pong), net.gateway);
        me.send_ip(gateway, WORLD, 1, &ping(2));
        assert_eq!(me.hears(pong), WORLD);
    });
}

//! What guests get: addresses, names, the world.

use basin_model::Bytes;

use super::packet::{dhcp_reply, ping, pong};
use super::server::*;
use crate::fabric::Fabric;

#[test]
fn a_guest_gets_its_address_and_names() {
    in_namespace("linux::tests::serve::a_guest_gets_its_address_and_names", || async {
        let daemon = Daemon::new("a");
        let fabric = daemon.start();
        let mut net = network(1);
        let first = lease(&mut net, 10);
        fabric.sync(&[net.clone()]).await.unwrap();
        let one = guest(&fabric, &net, &first).await;
        assert_eq!(one.acquire(), first.address);
        for name in ["vm10.vm.test", "vm10"] {
            assert_eq!(one.ask(name, 1), Some(first.address.octets().to_vec()), "{name}");
        }
        let reverse = one.ask("10.1.77.10.in-addr.arpa", 12).unwrap();
        assert_eq!(&reverse[..], b"\x04vm10\x02vm\x04test\x00");
        // A change takes effect in the process that runs.
        let pid = daemon.pid(&net).unwrap();
        let second = lease(&mut net, 11);
        fabric.sync(&[net.clone()]).await.unwrap();
        let two = guest(&fabric, &net, &second).await;
        assert_eq!(two.acquire(), second.address);
        assert_eq!(one.ask("vm11", 1), Some(second.address.octets().to_vec()));
        assert_eq!(daemon.pid(&net), Some(pid));
        // One that is gone has no name, and its address is free for another.
        net.leases.retain(|l| l.mac != second.mac);
        fabric.close_tap(two.nic).await.unwrap();
        fabric.sync(&[net.clone()]).await.unwrap();
        assert_eq!(one.ask("vm11.vm.test", 1), None);
        let mut third = lease(&mut net, 12);
        third.address = second.address;
        net.leases.pop();
        net.leases.push(third.clone());
        fabric.sync(&[net.clone()]).await.unwrap();
        let three = guest(&fabric, &net, &third).await;
        assert_eq!(three.acquire(), second.address);
        assert_eq!(daemon.pid(&net), Some(pid));
        let stats = fabric.tap_stats(three.nic).await.unwrap();
        assert!(stats.sent_packets >= 2 && stats.sent > Bytes(500), "{stats:?}");
        assert!(stats.received_packets >= 2, "{stats:?}");
    });
}

#[test]
fn a_stranger_gets_no_address() {
    in_namespace("linux::tests::serve::a_stranger_gets_no_address", || async {
        let daemon = Daemon::new("a");
        let fabric = daemon.start();
        let mut net = network(1);
        let known = lease(&mut net, 10);
        let unknown = lease(&mut net, 11);
        net.leases.pop();
        fabric.sync(&[net.clone()]).await.unwrap();
        let stranger = guest(&fabric, &net, &unknown).await;
        stranger.dhcp(1, None);
        stranger.hears_nothing(|f| dhcp_reply(f, 2).map(|_| ()));
        assert_eq!(guest(&fabric, &net, &known).await.acquire(), known.address);
    });
}

#[test]
fn guests_reach_the_world_by_the_servers_address() {
    in_namespace("linux::tests::serve::guests_reach_the_world_by_the_servers_address", || async {
        uplink();
        let daemon = Daemon::new("a");
        let fabric = daemon.start();
        let mut net = network(1);
        let lease = lease(&mut net, 10);
        fabric.sync(&[net.clone()]).await.unwrap();
        let guest = guest(&fabric, &net, &lease).await;
        let gateway = guest.resolve(net.gateway);
        guest.announce();
        // The world has no route to the network: an answer proves the translation.
        guest.send_ip(gateway, WORLD, 1, &ping(1));
        assert_eq!(guest.hears(pong), WORLD);
        assert_eq!(sh("cat /proc/sys/net/ipv4/ip_forward").trim(), "0");
    });
}

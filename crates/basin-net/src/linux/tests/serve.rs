//! What guests get: addresses, names, the world.

use std::time::Instant;

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

#[test]
fn other_names_come_from_the_servers_resolver() {
    in_namespace("linux::tests::serve::other_names_come_from_the_servers_resolver", || async {
        uplink();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf").display().to_string();
        std::fs::write(&file, format!("nameserver {WORLD}\n")).unwrap();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        // Seen in this namespace only.
        sh(&format!("mount --bind {file} /etc/resolv.conf"));
        outside(
            "dnsmasq --conf-file=/dev/null --no-resolv --no-hosts --pid-file= \
                 --address=/world.test/192.0.2.7 --user=root",
        );
        let daemon = Daemon::new("a");
        let fabric = daemon.start();
        let mut net = network(1);
        let lease = lease(&mut net, 10);
        fabric.sync(&[net.clone()]).await.unwrap();
        let guest = guest(&fabric, &net, &lease).await;
        assert_eq!(guest.ask("www.world.test", 1), Some(vec![192, 0, 2, 7]));
        // The network's own domain is never asked of others.
        assert_eq!(guest.ask("nobody.vm.test", 1), None);
    });
}

/// Subnets of every size that is allowed are served.
#[test]
fn subnets_of_any_size_work() {
    in_namespace("linux::tests::serve::subnets_of_any_size_work", || async {
        let daemon = Daemon::new("a");
        let fabric = daemon.start();
        for (subnet, last) in [("10.0.0.0/8", 200), ("10.77.16.0/20", 9), ("10.77.1.8/29", 14)] {
            let mut net = network(1);
            net.subnet = subnet.parse().unwrap();
            net.gateway = net.subnet.hosts().next().unwrap();
            let lease = lease(&mut net, last);
            fabric.sync(&[net.clone()]).await.unwrap();
            let guest = guest(&fabric, &net, &lease).await;
            assert_eq!(guest.acquire(), lease.address, "{subnet}");
            let [a, b, c, d] = lease.address.octets();
            let reverse = guest.ask(&format!("{d}.{c}.{b}.{a}.in-addr.arpa"), 12);
            assert!(reverse.is_some(), "{subnet}");
            fabric.sync(&[]).await.unwrap();
        }
    });
}

/// Prints how long things take, with `--nocapture`.
#[test]
fn many_machines_start_on_one_network() {
    in_namespace("linux::tests::serve::many_machines_start_on_one_network", || async {
        uplink();
        let daemon = Daemon::new("a");
        let fabric = daemon.start();
        let mut net = network(1);
        let note = |what: &str, since: Instant| {
            println!("{what}: {:.1} ms", since.elapsed().as_secs_f64() * 1e3);
        };
        let start = Instant::now();
        fabric.sync(&[net.clone()]).await.unwrap();
        note("a network from nothing", start);
        let mut guests = vec![];
        for last in 2..=42 {
            let lease = lease(&mut net, last);
            let start = Instant::now();
            fabric.sync(&[net.clone()]).await.unwrap();
            let synced = Instant::now();
            let guest = guest(&fabric, &net, &lease).await;
            if last % 20 == 2 {
                note(&format!("tap {}", last - 1), synced);
                note(&format!("lease and tap {}", last - 1), start);
            }
            assert_eq!(guest.acquire(), lease.address);
            guests.push(guest);
        }
        fabric.sync(&[net.clone()]).await.unwrap();
        let start = Instant::now();
        for _ in 0..20 {
            fabric.sync(&[net.clone()]).await.unwrap();
        }
        note("20 idle syncs", start);
        assert_eq!(guests[0].ask("vm42", 1), Some(guests[40].address.octets().to_vec()));
    });
}

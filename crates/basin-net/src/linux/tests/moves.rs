//! A machine moves between servers while it runs.

use std::net::Ipv4Addr;

use super::packet::*;
use super::servers::*;
use crate::fabric::{Lease, NetworkSpec};

/// A machine on A, one guest on each server, and all servers synced.
struct Scene {
    net: NetworkSpec,
    moved: Lease,
    guests: Vec<Guest>,
    machine: Guest,
}

fn scene(servers: &[Server; 3]) -> Scene {
    let [a, b, c] = servers;
    let mut net = spanning(1, &[a, b, c]);
    let moved = lease_at(&mut net, 10, a);
    let leases = [lease_at(&mut net, 11, a), lease_at(&mut net, 12, b), lease_at(&mut net, 13, c)];
    sync_all(servers, &[&net]);
    let guests = servers.iter().zip(&leases).map(|(s, l)| s.guest(&net, l)).collect();
    let machine = a.tap(&net, new_nic(), &moved);
    Scene { net, moved, guests, machine }
}

/// Everybody reaches the machine at this tap, and it reaches everybody.
fn all_reach(guests: &[Guest], machine: &Guest) {
    for guest in guests {
        guest.tell(machine, b"to the machine");
        machine.is_told(b"to the machine");
        machine.tell(guest, b"from the machine");
        guest.is_told(b"from the machine");
    }
}

#[test]
fn a_machine_that_moves_is_reached_all_the_time() {
    in_cluster("linux::tests::moves::a_machine_that_moves_is_reached_all_the_time", |servers| {
        let [a, b, _] = &servers;
        let Scene { mut net, moved, guests, machine } = scene(&servers);
        machine.acquire();
        all_reach(&guests, &machine);
        let pids: Vec<_> = servers.iter().map(|s| s.pid(&net)).collect();

        // It is to move from A to B; B has a tap for it, and it still runs on A.
        place(&mut net, moved.mac, a, Some(b));
        sync_all(&servers, &[&net]);
        let arrived = b.tap(&net, machine.nic, &moved);
        all_reach(&guests, &machine);
        arrived.drain();
        guests[1].tell(&machine, b"early");
        machine.is_told(b"early");
        arrived.is_not_told(b"early");

        // It stops on A and runs on B. QEMU announces it. No daemon knows of it, and
        // yet the next datagram from everywhere arrives.
        arrived.arrive();
        for (guest, at) in guests.iter().zip(["A", "B", "C"]) {
            let heard = |f: &[u8]| (f.get(12..14)? == [0x80, 0x35]).then_some(());
            assert!(guest.find(std::time::Duration::from_secs(5), heard).is_some(), "{at}");
        }
        machine.drain();
        all_reach(&guests, &arrived);
        // A sync in between takes nothing back, though the store still says A.
        sync_all(&servers, &[&net]);
        all_reach(&guests, &arrived);
        machine.hears_nothing(|f| udp_payload(f).map(|_| ()));

        // The store says B. What is left on A is nobody.
        place(&mut net, moved.mac, b, None);
        sync_all(&servers, &[&net]);
        machine.tell(&guests[0], b"a ghost");
        machine.tell(&guests[2], b"a ghost");
        guests[0].is_not_told(b"a ghost");
        guests[2].is_not_told(b"a ghost");
        all_reach(&guests, &arrived);
        a.close(machine.nic);
        drop(machine);
        sync_all(&servers, &[&net]);
        all_reach(&guests, &arrived);
        // Its address is prolonged by its new server, its world is there.
        assert_eq!(arrived.acquire(), moved.address);
        let gateway = arrived.resolve(net.gateway);
        arrived.announce();
        arrived.send_ip(gateway, STRANGER, 1, &ping(1));
        assert_eq!(arrived.hears(pong), STRANGER);
        let now: Vec<_> = servers.iter().map(|s| s.pid(&net)).collect();
        assert_eq!(pids, now, "DHCP and DNS run on");
        for server in &servers {
            assert_eq!(server.steps_left(&[seen_by(server, &net)]), Vec::<String>::new());
        }
    });
}

/// There and back again, with the announcement of a guest (gratuitous ARP) instead of
/// QEMU's, and a daemon that is new at every stage.
#[test]
fn a_machine_moves_there_and_back() {
    in_cluster("linux::tests::moves::a_machine_moves_there_and_back", |servers| {
        let Scene { mut net, moved, guests, machine } = scene(&servers);
        let mut machine = machine;
        for turn in 0..4 {
            let (from, to) = (&servers[turn % 2], &servers[1 - turn % 2]);
            place(&mut net, moved.mac, from, Some(to));
            servers.iter().for_each(Server::restart);
            sync_all(&servers, &[&net]);
            let arrived = to.tap(&net, machine.nic, &moved);
            all_reach(&guests, &machine);
            arrived.announce();
            all_reach(&guests, &arrived);
            servers.iter().for_each(Server::restart);
            place(&mut net, moved.mac, to, None);
            // The new owner hears of it last.
            from.sync(&[seen_by(from, &net)]);
            all_reach(&guests, &arrived);
            from.close(machine.nic);
            machine = arrived;
            sync_all(&servers, &[&net]);
            all_reach(&guests, &machine);
        }
    });
}

/// A move that is called off leaves everything as it was.
#[test]
fn a_move_that_is_called_off_changes_nothing() {
    in_cluster("linux::tests::moves::a_move_that_is_called_off_changes_nothing", |servers| {
        let [a, b, _] = &servers;
        let Scene { mut net, moved, guests, machine } = scene(&servers);
        let entries = |s: &Server| {
            let text = s.sh("bridge fdb show");
            // What was merely learned comes and goes.
            let kept = |l: &&str| l.contains("static") || l.contains("permanent");
            let mut lines: Vec<String> = text.lines().filter(kept).map(str::to_owned).collect();
            lines.sort();
            lines
        };
        let before: Vec<_> = servers.iter().map(entries).collect();
        place(&mut net, moved.mac, a, Some(b));
        sync_all(&servers, &[&net]);
        let arriving = b.tap(&net, machine.nic, &moved);
        b.close(arriving.nic);
        drop(arriving);
        all_reach(&guests, &machine);
        place(&mut net, moved.mac, a, None);
        sync_all(&servers, &[&net]);
        all_reach(&guests, &machine);
        let after: Vec<_> = servers.iter().map(entries).collect();
        assert_eq!(before, after);
    });
}

/// While a machine moves, other guests can still not take its place, nor it another's.
#[test]
fn a_move_opens_no_door() {
    in_cluster("linux::tests::moves::a_move_opens_no_door", |servers| {
        let [a, b, c] = &servers;
        let Scene { mut net, moved, guests, machine } = scene(&servers);
        place(&mut net, moved.mac, a, Some(b));
        sync_all(&servers, &[&net]);
        let arriving = b.tap(&net, machine.nic, &moved);
        for thief in &guests {
            thief.send(&ethernet(BROADCAST, moved.mac, 0x8035, &[0; 46]));
            let packet = ip(moved.address, thief.gateway, 17, &udp(1, 2, b"thief"));
            thief.send(&ethernet(BROADCAST, moved.mac, 0x0800, &packet));
            let lldp = basin_model::MacAddr([1, 0x80, 0xc2, 0, 0, 0x0e]);
            thief.send(&ethernet(lldp, moved.mac, 0x88cc, b"thief"));
        }
        all_reach(&guests, &machine);
        // What the arriving tap may say is what its guest may say.
        for victim in &guests {
            let lldp = basin_model::MacAddr([1, 0x80, 0xc2, 0, 0, 0x0e]);
            arriving.send(&ethernet(lldp, victim.mac, 0x88cc, b"thief"));
            arriving.send(&ethernet(BROADCAST, victim.mac, 0x8035, &[0; 46]));
        }
        guests[0].tell(&guests[1], b"mine");
        guests[1].is_told(b"mine");
        guests[2].tell(&guests[1], b"mine too");
        guests[1].is_told(b"mine too");
        all_reach(&guests, &machine);
        // Nobody on the underlay can, either.
        let outside = std::net::UdpSocket::bind((STRANGER, 0)).unwrap();
        let forged = ethernet(BROADCAST, moved.mac, 0x8035, &[0; 46]);
        outside.send_to(&vxlan(&net, &forged), (c.address, 4789)).unwrap();
        outside.send_to(&vxlan(&net, &forged), (a.address, 4789)).unwrap();
        all_reach(&guests, &machine);
    });
}

/// A server whose daemon slept through the move holds to what it knew, which no frame
/// changes, and is right again with its next sync.
#[test]
fn a_server_that_heard_nothing_of_a_move_catches_up() {
    in_cluster(
        "linux::tests::moves::a_server_that_heard_nothing_of_a_move_catches_up",
        |servers| {
            let [a, b, c] = &servers;
            let Scene { mut net, moved, guests, machine } = scene(&servers);
            place(&mut net, moved.mac, a, Some(b));
            a.sync(&[seen_by(a, &net)]);
            b.sync(&[seen_by(b, &net)]);
            let arrived = b.tap(&net, machine.nic, &moved);
            arrived.arrive();
            arrived.tell(&guests[2], b"unheard");
            guests[2].is_not_told(b"unheard");
            all_reach(&guests[..2], &arrived);
            place(&mut net, moved.mac, b, None);
            c.sync(&[seen_by(c, &net)]);
            all_reach(&guests, &arrived);
        },
    );
}

/// Addresses that machines are given again elsewhere, without a move.
#[test]
fn a_machine_that_stops_here_and_starts_there_is_there() {
    in_cluster(
        "linux::tests::moves::a_machine_that_stops_here_and_starts_there_is_there",
        |servers| {
            let [a, _, c] = &servers;
            let Scene { mut net, moved, guests, machine } = scene(&servers);
            all_reach(&guests, &machine);
            a.close(machine.nic);
            let nic = machine.nic;
            drop(machine);
            place(&mut net, moved.mac, c, None);
            sync_all(&servers, &[&net]);
            let machine = c.tap(&net, nic, &moved);
            assert_eq!(machine.acquire(), moved.address);
            all_reach(&guests, &machine);
            let address = guests[1].ask("vm10", 1).unwrap();
            assert_eq!(Ipv4Addr::from(<[u8; 4]>::try_from(address).unwrap()), moved.address);
        },
    );
}

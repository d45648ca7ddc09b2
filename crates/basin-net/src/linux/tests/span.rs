//! Networks that span servers: what crosses, and what stays.

use std::net::Ipv4Addr;

use super::packet::*;
use super::servers::*;
use crate::names::bridge_mac;

#[test]
fn guests_of_different_servers_reach_each_other() {
    in_cluster("linux::tests::span::guests_of_different_servers_reach_each_other", |servers| {
        let [a, b, c] = &servers;
        let mut net = spanning(1, &[a, b, c]);
        let mut apart = spanning(2, &[a, b, c]);
        let leases = [lease_at(&mut net, 10, a), lease_at(&mut net, 11, b)];
        let stranger = lease_at(&mut apart, 11, b);
        sync_all(&servers, &[&net, &apart]);
        let one = a.guest(&net, &leases[0]);
        let two = b.guest(&net, &leases[1]);
        let stranger = b.guest(&apart, &stranger);
        // Each gets its address from its own server, with the packet size that fits.
        for guest in [&one, &two] {
            let reply = guest.bind();
            assert_eq!(reply.address, guest.address);
            assert_eq!(reply.option(26), Some(&1450u16.to_be_bytes()[..]), "MTU");
        }
        // By name, by address, by MAC.
        let address = one.ask("vm11.vm.test", 1).unwrap();
        let address = Ipv4Addr::from(<[u8; 4]>::try_from(address).unwrap());
        assert_eq!(address, two.address);
        let found = std::thread::scope(|scope| {
            scope.spawn(|| two.answer_arp());
            one.resolve(address)
        });
        assert_eq!(found, two.mac);
        // A full packet that must not be cut arrives whole; and back.
        for (from, to) in [(&one, &two), (&two, &one)] {
            let data = udp(1000, 2000, &[0x5a; 1450 - 28]);
            let mut packet = ip(from.address, to.address, 17, &data);
            packet[6] = 0x40;
            packet[10..12].copy_from_slice(&[0, 0]);
            let check = sum(&[&packet[..20]]);
            packet[10..12].copy_from_slice(&check.to_be_bytes());
            from.send(&ethernet(to.mac, from.mac, 0x0800, &packet));
            assert_eq!(to.hears(|f| (f.len() == 1464).then(|| f[14..].to_vec())), packet);
        }
        // Another network of the same servers hears nothing of it.
        stranger.drain();
        one.announce();
        one.tell(&stranger, b"across");
        stranger.hears_nothing(|f| (f.get(6..12)? == one.mac.0).then_some(()));
        // The world, each by its own server.
        for guest in [&one, &two] {
            let gateway = guest.resolve(net.gateway);
            assert_eq!(gateway, bridge_mac(net.id));
            guest.announce();
            guest.send_ip(gateway, STRANGER, 1, &ping(1));
            assert_eq!(guest.hears(pong), STRANGER);
        }
        // A server without guests of the network gets no broadcasts of it.
        let port = a.overlay(&net);
        assert!(!a.sh(&format!("bridge fdb show dev {port}")).contains(&c.address.to_string()));
        // All of it goes away.
        for server in &servers {
            server.sync(&[]);
            assert_eq!(server.sh("ip -o link show type vxlan; ip -o link show type bridge"), "");
            assert_eq!(server.sh("nft list ruleset"), "");
            assert_eq!(server.files(), Vec::<String>::new());
        }
    });
}

/// Counts frames that come to the server from others.
fn spy(server: &Server) {
    server.sh("nft 'table inet spy { chain input { type filter hook input priority -100; \
         udp dport 4789 counter; }; }'");
}

fn spied(server: &Server) -> u64 {
    let text = server.sh("nft list table inet spy");
    let words: Vec<&str> = text.split_whitespace().collect();
    let at = words.iter().position(|w| *w == "packets").unwrap();
    words[at + 1].parse().unwrap()
}

#[test]
fn the_gateway_and_dhcp_stay_on_their_server() {
    in_cluster("linux::tests::span::the_gateway_and_dhcp_stay_on_their_server", |servers| {
        let [a, b, c] = &servers;
        let mut net = spanning(1, &[a, b, c]);
        let leases = [lease_at(&mut net, 10, a), lease_at(&mut net, 11, b)];
        sync_all(&servers, &[&net]);
        let one = a.guest(&net, &leases[0]);
        let two = b.guest(&net, &leases[1]);
        spy(b);
        // What a guest asks its gateway: an address, and who has the gateway's.
        one.acquire();
        assert_eq!(one.resolve(net.gateway), bridge_mac(net.id));
        // What the gateway asks of the network for itself.
        a.sh("ping -c 1 -W 1 10.77.1.77 >/dev/null || true");
        assert_eq!(spied(b), 0);
        // The count counts; and a question for a name does not cross, but what `ask`
        // announces does.
        one.send(&one.arp(one.mac, one.address, two.address));
        two.hears(|f| (f.get(12..14)? == [8, 6]).then_some(()));
        assert_eq!(spied(b), 1);
        one.ask("vm11", 1).unwrap();
        two.hears(|f| (f.get(12..14)? == [8, 6]).then_some(()));
        assert_eq!(spied(b), 2);
        // Only one gateway ever answers, though each server has it.
        one.drain();
        one.send(&one.arp(one.mac, one.address, net.gateway));
        let reply = |f: &[u8]| (f.get(12..14)? == [8, 6] && f.get(20..22)? == [0, 2]).then_some(());
        one.hears(reply);
        one.hears_nothing(reply);
    });
}

#[test]
fn servers_come_and_go() {
    in_cluster("linux::tests::span::servers_come_and_go", |servers| {
        let [a, b, c] = &servers;
        // Alone first: a network that already has guests begins to span servers.
        let mut net = spanning(1, &[a]);
        let mine = lease_at(&mut net, 10, a);
        let mut alone = seen_by(a, &net);
        alone.overlay = None;
        a.sync(&[alone]);
        let one = a.guest(&net, &mine);
        assert_eq!(one.bind().option(26), None);
        net.overlay.as_mut().unwrap().peers.extend([b.address, c.address]);
        let leases = [lease_at(&mut net, 11, b), lease_at(&mut net, 12, c)];
        sync_all(&servers, &[&net]);
        let two = b.guest(&net, &leases[0]);
        let three = c.guest(&net, &leases[1]);
        assert_eq!(one.bind().option(26), Some(&1450u16.to_be_bytes()[..]));
        one.tell(&two, b"two");
        two.is_told(b"two");
        three.tell(&one, b"one");
        one.is_told(b"one");
        // The third is removed; it goes on sending, as a server that was stolen would.
        let pid = a.pid(&net);
        net.overlay.as_mut().unwrap().peers.remove(&c.address);
        let before = net.clone();
        net.leases.retain(|l| l.at != Some(c.address));
        a.sync(&[seen_by(a, &net)]);
        three.tell(&one, b"still there?");
        one.is_not_told(b"still there?");
        c.inject(
            &before,
            a,
            &ethernet(
                one.mac,
                two.mac,
                0x0800,
                &ip(two.address, one.address, 17, &udp(1000, 2000, b"as another")),
            ),
        );
        one.is_not_told(b"as another");
        two.tell(&one, b"here");
        one.is_told(b"here");
        assert!(a.pid(&net) == pid, "DHCP and DNS run on");
        // And comes back.
        net = before;
        net.overlay.as_mut().unwrap().peers.insert(c.address);
        a.sync(&[seen_by(a, &net)]);
        three.tell(&one, b"back");
        one.is_told(b"back");
    });
}

#[test]
fn a_server_whose_cable_is_too_thin_says_so() {
    in_cluster("linux::tests::span::a_server_whose_cable_is_too_thin_says_so", |servers| {
        let [a, b, c] = &servers;
        let mut net = spanning(1, &[a, b, c]);
        let leases = [lease_at(&mut net, 10, a), lease_at(&mut net, 11, b)];
        assert_eq!(a.overlay_mtu(), Some(1450));
        a.sh("ip link set up0 mtu 1400");
        assert_eq!(a.overlay_mtu(), Some(1350));
        let error = a.try_sync(&[seen_by(a, &net)]).unwrap_err().to_string();
        assert!(error.contains("raise the MTU of up0 to 1500"), "{error}");
        // Its own guests are served.
        let one = a.guest(&net, &leases[0]);
        assert_eq!(one.acquire(), one.address);
        a.sh("ip link set up0 mtu 1500");
        sync_all(&servers, &[&net]);
        let two = b.guest(&net, &leases[1]);
        one.tell(&two, b"now");
        two.is_told(b"now");
    });
}

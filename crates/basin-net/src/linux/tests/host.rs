//! What the server keeps: its own settings, other software's things.

use super::server::*;
use crate::fabric::{Affected, Fabric, NetError, SyncError};

/// Everything of the namespace that could be damaged.
fn snapshot() -> String {
    [
        "nft list ruleset",
        "ip -o -4 addr; ip -o link",
        "ip route show table all type unicast; ip rule",
        // Settings of interfaces that are there before and after.
        "sysctl -a 2>/dev/null | grep -E '^net\\.(ipv4\\.(ip_|conf)|bridge|ipv6\\.conf)' | sort",
    ]
    .map(sh)
    .join("\n---\n")
}

#[test]
fn the_server_is_the_same_afterwards() {
    in_namespace("linux::tests::host::the_server_is_the_same_afterwards", || async {
        uplink();
        sh("nft add table inet mine && nft add chain inet mine c && \
            nft add rule inet mine c tcp dport 22 accept && nft add table bridge basin_zz && \
            ip link add bba-mine type veth peer name bba-peer && ip link add bba-12345678 type bridge && \
            ip tuntap add bta-12345678 mode tap");
        let before = snapshot();
        let daemon = Daemon::new("a");
        let fabric = daemon.start();
        let (mut net, other) = (network(1), network(2));
        let lease = lease(&mut net, 10);
        fabric.sync(&[net.clone(), other.clone()]).await.unwrap();
        let guest = guest(&fabric, &net, &lease).await;
        guest.acquire();
        assert_eq!(daemon.processes(), 2);
        fabric.sync(std::slice::from_ref(&other)).await.unwrap();
        assert_eq!(daemon.processes(), 1);
        fabric.sync(&[]).await.unwrap();
        assert_eq!(daemon.processes(), 0);
        assert_eq!(daemon.files(), Vec::<String>::new());
        pretty(&before, &snapshot());
    });
}

fn pretty(before: &str, after: &str) {
    let lost: Vec<_> = before.lines().filter(|l| !after.contains(l)).collect();
    let new: Vec<_> = after.lines().filter(|l| !before.contains(l)).collect();
    assert!(before == after, "lost {lost:#?}\nnew {new:#?}");
}

#[test]
fn forwarding_that_was_on_stays_on() {
    in_namespace("linux::tests::host::forwarding_that_was_on_stays_on", || async {
        uplink();
        sh("sysctl -qw net.ipv4.ip_forward=1");
        let daemon = Daemon::new("a");
        let fabric = daemon.start();
        fabric.sync(&[network(1)]).await.unwrap();
        fabric.sync(&[]).await.unwrap();
        for key in ["ip_forward", "conf/up0/forwarding", "conf/all/forwarding"] {
            assert_eq!(sh(&format!("cat /proc/sys/net/ipv4/{key}")).trim(), "1", "{key}");
        }
    });
}

#[test]
fn a_subnet_that_the_server_reaches_is_refused() {
    in_namespace("linux::tests::host::a_subnet_that_the_server_reaches_is_refused", || async {
        uplink();
        sh("ip route add 10.77.8.0/22 via 198.51.100.2 && ip route add blackhole 10.78.0.0/16");
        let daemon = Daemon::new("a");
        let fabric = daemon.start();
        fabric.sync(&[network(1)]).await.unwrap();
        for (subnet, expect) in [
            ("198.51.0.0/16", Some("up0")),
            ("198.51.100.128/25", Some("up0")),
            ("10.77.9.0/24", Some("up0")),
            ("10.78.3.0/24", Some("a route without an interface")),
            ("10.77.1.0/25", Some("bba-")),
            ("127.0.8.0/24", Some("lo")),
            ("10.77.2.0/24", None),
        ] {
            match (fabric.check(subnet.parse().unwrap()).await, expect) {
                (Ok(()), None) => {}
                (Err(NetError::Overlap { device, .. }), Some(name)) => {
                    assert!(device.starts_with(name), "{subnet}: {device}");
                }
                (result, _) => panic!("{subnet}: {result:?}"),
            }
        }
        // A refused network leaves the others standing and nothing of itself.
        let mut good = network(2);
        let lease = lease(&mut good, 10);
        let bad = network(9);
        let result = fabric.sync(&[bad.clone(), good.clone()]).await;
        let error = result.unwrap_err();
        assert!(matches!(error.error, NetError::Overlap { .. }), "{error:?}");
        assert_eq!(error.affected, Affected::Only([bad.id].into()));
        assert!(!output(&format!("ip link show {}", daemon.bridge(&bad))).status.success());
        assert_eq!(guest(&fabric, &good, &lease).await.acquire(), lease.address);
    });
}

#[test]
fn a_program_in_the_way_is_named() {
    in_namespace("linux::tests::host::a_program_in_the_way_is_named", || async {
        let _udp = std::net::UdpSocket::bind("0.0.0.0:53").unwrap();
        let _tcp = std::net::TcpListener::bind("0.0.0.0:53").unwrap();
        let daemon = Daemon::new("a");
        let error = daemon.start().sync(&[network(1)]).await.unwrap_err().to_string();
        let pid = std::process::id();
        assert!(error.contains("port 53") && error.contains(&format!("pid {pid}")), "{error}");
    });
}

#[test]
fn what_others_break_is_repaired() {
    in_namespace("linux::tests::host::what_others_break_is_repaired", || async {
        let daemon = Daemon::new("a");
        let fabric = daemon.start();
        let mut net = network(1);
        let lease = lease(&mut net, 10);
        let nets = [net.clone()];
        fabric.sync(&nets).await.unwrap();
        let guest = guest(&fabric, &net, &lease).await;
        let bridge = daemon.bridge(&net);
        let pid = || daemon.pid(&net).unwrap();
        for damage in [
            "nft delete table inet basin_a".to_owned(),
            "nft flush chain bridge basin_a guest".to_owned(),
            "nft flush ruleset".to_owned(),
            format!("ip link set {bridge} down"),
            format!("ip addr flush dev {bridge}"),
            format!("ip link set {bridge} type bridge stp_state 1"),
            format!("sysctl -qw net.ipv6.conf.{bridge}.disable_ipv6=0"),
            // Wait: a killed process may look alive for a moment.
            format!(
                "kill -9 {0}; while grep -q . /proc/{0}/cmdline 2>/dev/null; do sleep 0.01; done",
                pid()
            ),
            format!("ip link set {} nomaster", daemon.instance().tap(guest.nic)),
            format!("ip link del {bridge}"),
        ] {
            // An idle sync in between learns what is there.
            fabric.sync(&nets).await.unwrap();
            sh(&damage);
            fabric.sync(&nets).await.unwrap();
            assert_eq!(guest.acquire(), lease.address, "{damage}");
            let rules = sh("nft list ruleset");
            assert!(
                rules.contains("@owners accept") && rules.contains("masquerade"),
                "{damage}: {rules}"
            );
            let state = sh(&format!(
                "ip -d link show {bridge}; sysctl net.ipv6.conf.{bridge}.disable_ipv6"
            ));
            assert!(state.contains("stp_state 0"), "{damage}: {state}");
            assert!(state.contains("disable_ipv6 = 1"), "{damage}: {state}");
        }
        assert_eq!(daemon.processes(), 1);
    });
}

#[test]
fn a_program_that_is_missing_is_named() {
    in_namespace("linux::tests::host::a_program_that_is_missing_is_named", || async {
        let daemon = Daemon::new("a");
        // Mounts here are seen in this namespace only.
        let spare = tempfile::tempdir().unwrap();
        sh(&format!(
            "cp $(command -v nft) {0}/nft && cp $(command -v ip) {0}/ip",
            spare.path().display()
        ));
        sh("mount -t tmpfs none /usr/sbin");
        let fabric = daemon.start();
        // Nothing wanted: nothing missed.
        fabric.sync(&[]).await.unwrap();
        let missing = |result: Result<(), SyncError>| match result {
            Err(SyncError { error: NetError::Missing { program, .. }, .. }) => program,
            other => panic!("{other:?}"),
        };
        assert_eq!(missing(fabric.sync(&[network(1)]).await), "nft");
        sh(&format!("cp {}/* /usr/sbin/", spare.path().display()));
        assert_eq!(missing(fabric.sync(&[network(1)]).await), "dnsmasq");
        // With the programs back, all goes away again.
        sh("umount /usr/sbin");
        fabric.sync(&[]).await.unwrap();
        assert_eq!(daemon.files(), Vec::<String>::new());
        assert!(!sh("ip -o link").contains("bba-"));
    });
}

#[test]
fn a_firewall_in_the_way_is_named() {
    in_namespace("linux::tests::host::a_firewall_in_the_way_is_named", || async {
        let daemon = Daemon::new("a");
        let fabric = daemon.start();
        fabric.sync(&[network(1)]).await.unwrap();
        assert_eq!(fabric.obstacles().await, Vec::<String>::new());
        sh("nft 'add table ip filter; add chain ip filter FORWARD \
            { type filter hook forward priority 0; policy drop; }'");
        let found = fabric.obstacles().await;
        assert!(found.len() == 1 && found[0].contains("ip filter FORWARD"), "{found:?}");
    });
}

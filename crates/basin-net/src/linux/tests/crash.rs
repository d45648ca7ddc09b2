//! The daemon dies at any moment and comes back.

use super::packet::*;
use super::server::*;
use crate::fabric::{Fabric, NetworkSpec};
use crate::linux::LinuxFabric;
use crate::plan::plan;

/// The first `count` steps of a sync, then death. Whether that was all of it.
pub async fn partly(fabric: &LinuxFabric, networks: &[NetworkSpec], count: usize) -> bool {
    let mut inner = fabric.inner.lock().await;
    let observed = fabric.observe(&mut inner, networks).await.unwrap();
    let plan = plan(&fabric.instance, &fabric.layout, networks, &observed);
    let all = plan.steps.len() <= count;
    let steps = plan.steps.into_iter().take(count).collect::<Vec<_>>();
    fabric.apply(&mut inner, &steps).await.unwrap();
    all
}

pub async fn steps_left(fabric: &LinuxFabric, networks: &[NetworkSpec]) -> Vec<String> {
    let mut inner = fabric.inner.lock().await;
    let observed = fabric.observe(&mut inner, networks).await.unwrap();
    let plan = plan(&fabric.instance, &fabric.layout, networks, &observed);
    plan.steps.iter().map(|s| format!("{s:?}")).collect()
}

#[test]
fn death_between_any_two_steps_is_made_good() {
    in_namespace("linux::tests::crash::death_between_any_two_steps_is_made_good", || async {
        uplink();
        let before = sh("nft list ruleset; ip -o link; sysctl net.ipv4.conf.up0.forwarding");
        for count in 0.. {
            let daemon = Daemon::new("a");
            let mut net = network(1);
            let lease = lease(&mut net, 10);
            let nets = [net.clone()];
            let made_all = partly(&daemon.start(), &nets, count).await;
            let fabric = daemon.start();
            fabric.sync(&nets).await.unwrap();
            assert_eq!(steps_left(&fabric, &nets).await, Vec::<String>::new(), "after {count}");
            assert_eq!(daemon.processes(), 1, "after {count}");
            assert_eq!(guest(&fabric, &net, &lease).await.acquire(), lease.address);
            let removed_all = partly(&daemon.start(), &[], count).await;
            daemon.start().sync(&[]).await.unwrap();
            assert_eq!(daemon.processes(), 0, "after {count}");
            assert_eq!(daemon.files(), Vec::<String>::new(), "after {count}");
            let after = sh("nft list ruleset; ip -o link; sysctl net.ipv4.conf.up0.forwarding");
            assert_eq!(before, after, "after {count}");
            if made_all && removed_all {
                assert!(count > 10);
                break;
            }
        }
    });
}

#[test]
fn a_new_daemon_adopts_what_runs() {
    in_namespace("linux::tests::crash::a_new_daemon_adopts_what_runs", || async {
        let daemon = Daemon::new("a");
        let mut net = network(1);
        let (first, second) = (lease(&mut net, 10), lease(&mut net, 11));
        let nets = [net.clone()];
        let (one, pid) = {
            let fabric = daemon.start();
            fabric.sync(&nets).await.unwrap();
            (guest(&fabric, &net, &first).await, daemon.pid(&net))
        };
        // The pid file gets lost too.
        for file in daemon.files().iter().filter(|f| f.ends_with("dnsmasq.pid")) {
            std::fs::remove_file(file).unwrap();
        }
        let fabric = daemon.start();
        fabric.sync(&nets).await.unwrap();
        assert_eq!(daemon.processes(), 1);
        let mark = sh("pgrep -a dnsmasq || true");
        assert!(mark.contains(&format!("{} ", pid.unwrap())), "{mark}");
        // The running machine's tap is as it was, and still guarded.
        let two = guest(&fabric, &net, &second).await;
        let told = |f: &[u8]| f.windows(4).any(|w| w == b"tell").then_some(());
        let send = |from| {
            let packet = ip(from, two.address, 17, &udp(1, 2, b"tell"));
            one.send(&ethernet(two.mac, one.mac, 0x0800, &packet));
        };
        send(second.address);
        two.hears_nothing(told);
        send(first.address);
        two.hears(told);
        // A tap lives with its file.
        let tap = daemon.instance().tap(one.nic);
        sh(&format!("ip link show {tap}"));
        drop(one);
        assert!(!output(&format!("ip link show {tap}")).status.success());
        fabric.sync(&nets).await.unwrap();
        assert!(!sh("nft list ruleset").contains(&tap));
        assert_eq!(steps_left(&fabric, &nets).await, Vec::<String>::new());
        fabric.close_tap(two.nic).await.unwrap();
        fabric.close_tap(two.nic).await.unwrap();
    });
}

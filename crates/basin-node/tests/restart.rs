//! Daemons and servers come and go; what was asked for stays.

mod common;

use std::time::Duration;

use basin_model::vm::{FailureKind, Phase, Power, VmStatus};
use basin_model::{Generation, HostId, keys};
use basin_node::{LocalNode, NodeApi};
use basin_store::records::TxnBuilder;
use common::{OFF, Server, graceful};
use uuid::Uuid;

fn running(status: &VmStatus) -> bool {
    status.phase == Phase::Running
}

fn stopped(status: &VmStatus) -> bool {
    status.phase == Phase::Stopped
}

#[tokio::test]
async fn a_restarted_daemon_adopts_what_runs() {
    let server = Server::new().await;
    let node = server.start().await;
    let mut vm = server.vm(1);
    vm.spec.disks = vec![server.disk(&node).await];
    server.run(&mut vm).await;
    let before = server.wait(vm.id, running).await;
    node.shutdown().await;
    assert_eq!(server.world.running(), [vm.id]);
    assert_eq!((server.disks.exports().len(), server.fabric.taps().len()), (1, 1));

    let node = server.start().await;
    vm.run.resets = 1;
    server.write(&vm).await;
    let after = server.wait(vm.id, |s| s.resets_seen == 1).await;
    assert_eq!(after.qemu, before.qemu);
    assert_eq!((after.failures, server.world.launches(vm.id)), (0, 1));
    server.power(&mut vm, OFF).await;
    server.wait(vm.id, stopped).await;
    server.assert_empty();
    node.shutdown().await;
}

#[tokio::test]
async fn what_changed_while_no_daemon_ran_is_seen() {
    let server = Server::new().await;
    let node = server.start().await;
    let mut vms: Vec<_> = (1..=5).map(|n| server.vm(n)).collect();
    for vm in &mut vms {
        vm.spec.disks = vec![server.disk(&node).await];
        server.run(vm).await;
        server.wait(vm.id, running).await;
    }
    node.shutdown().await;
    let [off, crashed, died, deleted, stop] = &mut vms[..] else { unreachable!() };
    server.world.guest(off.id).unwrap().shutdown();
    server.world.guest(crashed.id).unwrap().panic();
    server.world.guest(died.id).unwrap().die("signal 9");
    TxnBuilder::new().delete(keys::vm(deleted.id)).commit(&*server.store).await.unwrap();
    server.power(stop, graceful(Duration::ZERO)).await;

    let node = server.start().await;
    let status = server.wait(off.id, stopped).await;
    assert_eq!((status.ended_epoch, status.failures), (1, 0));
    let kind = |s: &VmStatus| s.last_failure.as_ref().map(|f| f.kind);
    let status = server.wait(crashed.id, |s| running(s) && s.failures == 1).await;
    assert_eq!(kind(&status), Some(FailureKind::GuestPanic));
    let status = server.wait(died.id, |s| running(s) && s.failures == 1).await;
    assert_eq!(kind(&status), Some(FailureKind::MachineDied));
    server.wait(stop.id, stopped).await;
    server.until(async || server.status(deleted.id).await.is_none().then_some(())).await;
    let mut left = [crashed.id, died.id];
    left.sort();
    assert_eq!(server.world.running(), left);
    assert_eq!((server.disks.exports().len(), server.fabric.taps().len()), (2, 2));
    node.shutdown().await;
}

#[tokio::test]
async fn a_reboot_runs_again_what_should_run_and_counts_nothing() {
    let server = Server::new().await;
    let node = server.start().await;
    let (mut runs, mut off) = (server.vm(1), server.vm(2));
    for vm in [&mut runs, &mut off] {
        server.run(vm).await;
        server.wait(vm.id, running).await;
    }
    server.world.guest(off.id).unwrap().shutdown();
    server.wait(off.id, stopped).await;
    let noted = server.dir.path().join("state/boot-id");
    server.until(async || noted.exists().then_some(())).await;
    node.shutdown().await;

    server.world.reboot();
    std::fs::write(&noted, "another boot").unwrap();
    let node = server.start().await;
    let again = server.until(async || (server.world.launches(runs.id) == 2).then_some(())).await;
    let status = server.wait(runs.id, running).await;
    assert_eq!((again, status.failures, status.last_failure), ((), 0, None));
    assert_eq!(server.status(off.id).await.unwrap().phase, Phase::Stopped);
    assert_eq!(server.world.running(), [runs.id]);
    node.shutdown().await;
}

#[tokio::test]
async fn a_daemon_cut_off_in_a_start_is_made_good() {
    // On either side of every effect of a start.
    for cut in 0..12 {
        let server = Server::new().await;
        let node = server.start().await;
        let mut vm = server.vm(1);
        vm.spec.disks = vec![server.disk(&node).await];
        node.shutdown().await;
        server.world.set_delay(Duration::from_millis(6));

        // A runtime dropped is a daemon killed: nothing of it runs on.
        let doomed = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let (config, store) = (server.config(), server.store.clone());
        let (engine, fabric) = (server.world.engine(), server.fabric.clone());
        doomed.spawn(async move {
            let engine = std::sync::Arc::new(engine);
            let node = LocalNode::start(config, store, engine, fabric).await.unwrap();
            std::future::pending::<()>().await;
            drop(node);
        });
        server.run(&mut vm).await;
        tokio::time::sleep(Duration::from_millis(cut * 3)).await;
        tokio::task::spawn_blocking(move || drop(doomed)).await.unwrap();

        server.world.set_delay(Duration::ZERO);
        let node = server.start().await;
        let status = server.wait(vm.id, running).await;
        assert_eq!(status.failures, 0, "cut {cut}");
        assert_eq!(server.world.running(), [vm.id]);
        server.power(&mut vm, OFF).await;
        server.wait(vm.id, stopped).await;
        server.assert_empty();
        node.shutdown().await;
    }
}

#[tokio::test]
async fn what_nobody_wants_is_cleared_away_at_the_start() {
    let server = Server::new().await;
    let node = server.start().await;
    let mut vm = server.vm(1);
    vm.spec.disks = vec![server.disk(&node).await];
    server.run(&mut vm).await;
    server.wait(vm.id, running).await;
    node.shutdown().await;
    // The VM was handed to another server meanwhile, and again.
    let mut placement = vm.placement.unwrap();
    placement.generation = Generation(3);
    placement.host = HostId::from_uuid(Uuid::new_v4());
    vm.placement = Some(placement);
    server.write(&vm).await;
    let node = server.start().await;
    server.until(async || server.world.running().is_empty().then_some(())).await;
    server.wait(vm.id, stopped).await;
    server.assert_empty();
    node.shutdown().await;
}

#[tokio::test]
async fn a_second_daemon_is_refused_and_told_why() {
    let server = Server::new().await;
    let node = server.start().await;
    let (store, engine) = (server.store.clone(), std::sync::Arc::new(server.world.engine()));
    let second = LocalNode::start(server.config(), store, engine, server.fabric.clone()).await;
    let problem = second.err().unwrap().0;
    assert_eq!(problem.code, "state-dir-in-use");
    assert!(problem.detail.contains(&format!("process {}", std::process::id())));
    node.shutdown().await;
    server.start().await.shutdown().await;
}

#[tokio::test]
async fn a_thousand_vms_settle_and_then_cost_nothing() {
    const ALL: u32 = 1000;
    let server = Server::new().await;
    let node = server.start().await;
    let mut vms: Vec<_> = (1..=ALL).map(|n| server.vm(n)).collect();
    for vm in &mut vms {
        server.run(vm).await;
    }
    for vm in &vms {
        server.wait(vm.id, running).await;
    }
    assert_eq!(server.world.running().len(), ALL as usize);
    assert_eq!(node.usage().await.unwrap().vms.len(), ALL as usize);
    // At rest nothing is written: every status is as it was.
    let before = server.revision().await;
    server.power(&mut vms[0], Power::Paused).await;
    server.wait(vms[0].id, |s| s.phase == Phase::Paused).await;
    assert_eq!(server.revision().await.0, before.0 + 2);
    node.shutdown().await;
    let node = server.start().await;
    vms[1].run.resets += 1;
    server.write(&vms[1]).await;
    server.wait(vms[1].id, |s| s.resets_seen == 1).await;
    assert!(vms.iter().all(|vm| server.world.launches(vm.id) == 1));
    node.shutdown().await;
}

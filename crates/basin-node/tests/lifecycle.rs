//! What becomes of a VM on one server, by way of the store only.

mod common;

use std::time::Duration;

use basin_model::Generation;
use basin_model::hardware::{CpuClass, GuestHardware, MachineVersion};
use basin_model::vm::{
    CpuModel, FailureKind, FailurePolicy, OnFailure, Phase, Placement, Power, VmStatus,
};
use basin_model::{HostId, keys};
use basin_net::fake::Method;
use basin_node::{DiskError, NodeApi};
use basin_qemu::MachineState;
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
async fn starts_pauses_resets_and_stops() {
    let server = Server::new().await;
    let node = server.start().await;
    let mut vm = server.vm(1);
    vm.spec.disks = vec![server.disk(&node).await];
    server.run(&mut vm).await;
    let status = server.wait(vm.id, running).await;
    assert_eq!((status.started_epoch, status.generation), (1, Generation(1)));
    let spec = server.world.guest(vm.id).unwrap().spec().clone();
    assert_eq!((spec.disks.len(), spec.disks[0].queues, spec.nics.len()), (1, 2, 1));
    // Nothing was fixed: QEMU's choice of the day.
    assert_eq!((spec.cpu_model, spec.machine_version), (CpuModel::Auto, None));
    assert_eq!(server.disks.exports()[0].socket, spec.disks[0].socket);
    assert_eq!(server.fabric.taps().len(), 1);

    server.power(&mut vm, Power::Paused).await;
    server.wait(vm.id, |s| s.phase == Phase::Paused).await;
    server.power(&mut vm, Power::Running).await;
    server.wait(vm.id, running).await;
    vm.run.resets = 2;
    server.write(&vm).await;
    server.wait(vm.id, |s| s.resets_seen == 2).await;

    server.power(&mut vm, OFF).await;
    server.wait(vm.id, stopped).await;
    server.assert_empty();
    assert_eq!(server.world.launches(vm.id), 1);

    vm.hardware = Some(GuestHardware {
        class: CpuClass::Tcg,
        cpu: "Nehalem-v1".to_owned(),
        machine_version: Some(MachineVersion::new(7, 2)),
    });
    server.run(&mut vm).await;
    server.wait(vm.id, running).await;
    let spec = server.world.guest(vm.id).unwrap().spec().clone();
    assert_eq!(spec.cpu_model, CpuModel::Named("Nehalem-v1".to_owned()));
    assert_eq!(spec.machine_version, Some(MachineVersion::new(7, 2)));
    server.power(&mut vm, OFF).await;
    server.wait(vm.id, stopped).await;
    node.shutdown().await;
}

#[tokio::test]
async fn shuts_down_by_the_guest_or_by_force() {
    let server = Server::new().await;
    let node = server.start().await;
    let mut vm = server.vm(1);
    for obeys in [true, false] {
        server.run(&mut vm).await;
        let epoch = vm.run.epoch;
        server.wait(vm.id, |s| running(s) && s.started_epoch == epoch).await;
        server.world.guest(vm.id).unwrap().obey_power_button(obeys);
        let within = if obeys { Duration::from_secs(3600) } else { Duration::from_millis(300) };
        server.power(&mut vm, graceful(within)).await;
        let status = server.wait(vm.id, stopped).await;
        assert_eq!(status.ended_epoch, epoch);
        server.assert_empty();
    }
    node.shutdown().await;
}

#[tokio::test]
async fn a_guest_that_shuts_down_stays_off_until_somebody_asks() {
    let server = Server::new().await;
    let node = server.start().await;
    let mut vm = server.vm(1);
    server.run(&mut vm).await;
    server.wait(vm.id, running).await;
    server.world.guest(vm.id).unwrap().reboot();
    server.world.guest(vm.id).unwrap().shutdown();
    let status = server.wait(vm.id, stopped).await;
    assert_eq!((status.ended_epoch, status.failures), (1, 0));
    server.run(&mut vm).await;
    server.wait(vm.id, running).await;
    node.shutdown().await;
}

#[tokio::test]
async fn failures_follow_the_policy() {
    let server = Server::new().await;
    let node = server.start().await;
    let policy = |both| FailurePolicy { guest_crash: both, machine_death: both };
    let mut vm = server.vm(1);
    let again = |vm: &basin_model::vm::Vm| {
        let epoch = vm.run.epoch;
        move |s: &VmStatus| running(s) && s.started_epoch == epoch
    };

    vm.spec.policy = policy(OnFailure::Restart);
    server.run(&mut vm).await;
    server.wait(vm.id, running).await;
    server.world.guest(vm.id).unwrap().panic();
    let status = server.wait(vm.id, |s| running(s) && s.failures == 1).await;
    assert_eq!(status.last_failure.unwrap().kind, FailureKind::GuestPanic);
    server.world.guest(vm.id).unwrap().die("signal 9");
    let status = server.wait(vm.id, |s| running(s) && s.failures == 2).await;
    assert!(status.last_failure.unwrap().message.contains("signal 9"));

    vm.spec.policy = policy(OnFailure::Stop);
    server.write(&vm).await;
    server.world.guest(vm.id).unwrap().watchdog();
    let status = server.wait(vm.id, stopped).await;
    assert_eq!(status.last_failure.unwrap().kind, FailureKind::Watchdog);
    server.assert_empty();

    vm.spec.policy = policy(OnFailure::Leave);
    server.run(&mut vm).await;
    server.wait(vm.id, again(&vm)).await;
    server.world.guest(vm.id).unwrap().panic();
    server.wait(vm.id, |s| s.phase == Phase::Crashed).await;
    assert_eq!(server.world.guest(vm.id).unwrap().state(), MachineState::Crashed);
    server.world.guest(vm.id).unwrap().die("signal 11");
    server.wait(vm.id, |s| s.phase == Phase::Failed).await;
    server.until(async || server.fabric.taps().is_empty().then_some(())).await;
    server.assert_empty();
    node.shutdown().await;
}

#[tokio::test]
async fn a_start_that_fails_anywhere_leaves_nothing() {
    let server = Server::new().await;
    let node = server.start().await;
    let fails_then_starts = async |number, make_fail: &dyn Fn()| {
        let mut vm = server.vm(number);
        vm.spec.disks = vec![server.disk(&node).await, server.disk(&node).await];
        server.write(&vm).await;
        make_fail();
        server.run(&mut vm).await;
        let status = server.wait(vm.id, |s| matches!(s.phase, Phase::BackingOff { .. })).await;
        assert_eq!(status.last_failure.unwrap().kind, FailureKind::StartFailed);
        server.assert_empty();
        server.wait(vm.id, running).await;
        server.power(&mut vm, OFF).await;
        server.wait(vm.id, stopped).await;
        server.assert_empty();
    };
    let error = || DiskError { code: None, message: "blockd is away".into() };
    fails_then_starts(1, &|| server.disks.fail_next_opens(1, error())).await;
    fails_then_starts(2, &|| server.fabric.fail(Method::OpenTap, 1, "no")).await;
    fails_then_starts(3, &|| server.world.fail_next_launches(1, "no memory")).await;
    // What could not be taken away at once is taken away before the next try.
    let both = || {
        server.world.fail_next_launches(1, "no memory");
        server.fabric.fail(Method::CloseTap, 1, "busy");
    };
    let mut vm = server.vm(4);
    both();
    server.run(&mut vm).await;
    server.wait(vm.id, running).await;
    node.shutdown().await;
}

#[tokio::test]
async fn a_start_that_cannot_succeed_is_given_up_at_once() {
    let server = Server::new().await;
    let node = server.start().await;
    let mut vm = server.vm(1);
    let mut disk = server.disk(&node).await;
    disk.volume = basin_model::VolumeId::from_uuid(Uuid::new_v4());
    vm.spec.disks = vec![disk.clone()];
    server.run(&mut vm).await;
    let status = server.wait(vm.id, |s| s.phase == Phase::Failed).await;
    let failure = status.last_failure.unwrap();
    assert!(failure.message.contains(&disk.volume.to_string()), "{}", failure.message);
    assert_eq!((status.failures, status.ended_epoch), (1, 1));
    server.assert_empty();
    vm.spec.disks.clear();
    server.run(&mut vm).await;
    server.wait(vm.id, running).await;
    node.shutdown().await;
}

#[tokio::test]
async fn a_deleted_or_moved_vm_is_let_go() {
    let server = Server::new().await;
    let node = server.start().await;
    let mut vm = server.vm(1);
    vm.spec.disks = vec![server.disk(&node).await];
    server.run(&mut vm).await;
    server.wait(vm.id, running).await;
    let host = HostId::from_uuid(Uuid::new_v4());
    vm.placement = Some(Placement { host, generation: Generation(2) });
    server.write(&vm).await;
    let status = server.wait(vm.id, stopped).await;
    assert_eq!((status.host, status.generation), (server.host, Generation(1)));
    server.assert_empty();

    vm.placement = Some(Placement { host: server.host, generation: Generation(3) });
    server.write(&vm).await;
    server.wait(vm.id, |s| running(s) && s.generation == Generation(3)).await;
    assert!(node.forget_vm(vm.id).await.is_err());
    TxnBuilder::new().delete(keys::vm(vm.id)).commit(&*server.store).await.unwrap();
    server.until(async || server.status(vm.id).await.is_none().then_some(())).await;
    server.assert_empty();
    node.forget_vm(vm.id).await.unwrap();
    node.shutdown().await;
}

#[tokio::test]
async fn consoles_have_a_past_and_many_readers() {
    let server = Server::new().await;
    let node = server.start().await;
    let mut vm = server.vm(1);
    assert_eq!(node.console(vm.id).await.err().unwrap().0.code, "vm-not-running");
    server.run(&mut vm).await;
    server.wait(vm.id, running).await;
    let guest = server.world.guest(vm.id).unwrap();
    guest.say(b"booting\n").await.unwrap();
    let mut first = node.console(vm.id).await.unwrap();
    assert_eq!(first.history, b"booting\n");
    guest.say(b"login: ").await.unwrap();
    assert_eq!(first.output.recv().await.unwrap(), b"login: ");
    let mut second = node.console(vm.id).await.unwrap();
    assert_eq!(second.history, b"booting\nlogin: ");
    second.input.send(b"root\n".to_vec()).await.unwrap();
    assert_eq!(guest.hear(5).await.unwrap(), b"root\n");
    guest.say(b"#").await.unwrap();
    assert_eq!(first.output.recv().await.unwrap(), b"#");
    assert_eq!(second.output.recv().await.unwrap(), b"#");
    assert_eq!(node.console_log(vm.id, 8).await.unwrap(), b"login: #");
    guest.die("done");
    assert_eq!(first.output.recv().await, None);
    node.shutdown().await;
}

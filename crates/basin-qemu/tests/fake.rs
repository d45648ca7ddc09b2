//! The fake engine keeps the promises of the seam.

use std::sync::Arc;
use std::time::Duration;

use basin_model::vm::{CpuModel, Machine as MachineType};
use basin_model::{Bytes, Generation, Vcpus, VmId};
use basin_qemu::fake::{FakeEngine, FakeWorld};
use basin_qemu::{BootSpec, Engine, EngineError, Machine, MachineEvent, MachineSpec, MachineState};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn spec(n: u128) -> MachineSpec {
    MachineSpec {
        vm: VmId::from_uuid(uuid::Uuid::from_u128(n)),
        generation: Generation(1),
        name: format!("vm-{n}"),
        vcpus: Vcpus(1),
        memory: Bytes::mib(64),
        cpu_model: CpuModel::Auto,
        machine: MachineType::Q35,
        machine_version: None,
        boot: BootSpec::Bios,
        disks: vec![],
        cdroms: vec![],
        nics: vec![],
    }
}

async fn launch(engine: &FakeEngine, n: u128) -> Arc<dyn Machine> {
    engine.launch(&spec(n), vec![]).await.unwrap()
}

#[tokio::test]
async fn one_machine_a_vm_and_a_failed_launch_leaves_nothing() {
    let world = FakeWorld::new();
    let engine = world.engine();
    world.fail_next_launches(1, "no memory");
    let error = engine.launch(&spec(1), vec![]).await.err().unwrap();
    assert_eq!(error.to_string(), "the machine did not start: no memory");
    assert!(world.running().is_empty());
    launch(&engine, 1).await;
    assert!(matches!(engine.launch(&spec(1), vec![]).await, Err(EngineError::Start(_))));
    assert!(matches!(engine.forget(spec(1).vm).await, Err(EngineError::Refused { .. })));
    assert_eq!(world.launches(spec(1).vm), 1);
}

#[tokio::test]
async fn machines_outlive_the_daemon_with_what_happened_meanwhile() {
    let world = FakeWorld::new();
    for n in 1..=3 {
        launch(&world.engine(), n).await;
    }
    world.guest(spec(1).vm).unwrap().panic();
    world.guest(spec(2).vm).unwrap().die("signal 9");
    let mut adopted = world.engine().adopt().await.unwrap();
    adopted.sort_by_key(|a| a.vm);
    let mut states = vec![];
    for a in &adopted {
        states.push((a.vm, a.machine.state().await.unwrap()));
    }
    let expect = [(spec(1).vm, MachineState::Crashed), (spec(3).vm, MachineState::Running)];
    assert_eq!(states, expect);
}

#[tokio::test]
async fn what_guests_do_is_told() {
    let world = FakeWorld::new();
    let machine = launch(&world.engine(), 1).await;
    let guest = world.guest(spec(1).vm).unwrap();
    let mut events = machine.events();
    guest.reboot();
    machine.pause().await.unwrap();
    machine.resume().await.unwrap();
    guest.watchdog();
    machine.reset().await.unwrap();
    guest.obey_power_button(false);
    machine.press_power_button().await.unwrap();
    guest.obey_power_button(true);
    machine.press_power_button().await.unwrap();
    machine.kill().await.unwrap();
    machine.kill().await.unwrap();
    for expect in [
        MachineEvent::Reset { by_guest: true },
        MachineEvent::Paused,
        MachineEvent::Resumed,
        MachineEvent::Watchdog,
        MachineEvent::Reset { by_guest: false },
        MachineEvent::Shutdown { by_guest: true },
        MachineEvent::Exited { detail: "killed".into() },
    ] {
        assert_eq!(events.recv().await.unwrap(), expect);
    }
    assert_eq!(machine.state().await.unwrap(), MachineState::Gone);
    assert!(matches!(machine.pause().await, Err(EngineError::Gone)));
}

#[tokio::test]
async fn a_stuck_machine_is_killed_all_the_same() {
    let world = FakeWorld::new();
    let machine = launch(&world.engine(), 1).await;
    world.guest(spec(1).vm).unwrap().stick(true);
    assert!(matches!(machine.state().await, Err(EngineError::Refused { .. })));
    machine.kill().await.unwrap();
    assert!(world.running().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_launch_cut_short_leaves_what_the_next_daemon_adopts() {
    let world = FakeWorld::new();
    world.set_delay(Duration::from_secs(10));
    let engine = world.engine();
    let cut = |secs| tokio::time::timeout(Duration::from_secs(secs), engine.launch(&S, vec![]));
    static S: std::sync::LazyLock<MachineSpec> = std::sync::LazyLock::new(|| spec(1));
    assert!(cut(4).await.is_err());
    assert!(world.running().is_empty());
    assert!(cut(6).await.is_err());
    assert_eq!(world.engine().adopt().await.unwrap().len(), 1);
}

#[tokio::test]
async fn the_console_has_two_ends_a_log_and_one_reader() {
    let dir = tempfile::tempdir().unwrap();
    let world = FakeWorld::with_dir(dir.path().to_owned());
    let machine = launch(&world.engine(), 1).await;
    let guest = world.guest(spec(1).vm).unwrap();
    guest.say(b"early ").await.unwrap();
    let mut console = machine.open_console().await.unwrap();
    assert!(matches!(machine.open_console().await, Err(EngineError::Refused { .. })));
    guest.say(b"login: ").await.unwrap();
    let mut heard = [0; 7];
    console.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"login: ");
    console.write_all(b"root\n").await.unwrap();
    assert_eq!(guest.hear(5).await.unwrap(), b"root\n");
    drop(console);
    assert!(machine.open_console().await.is_ok());
    assert_eq!(std::fs::read(machine.console_log()).unwrap(), b"early login: ");
}

#[tokio::test]
async fn twenty_thousand_machines_fit() {
    let world = FakeWorld::new();
    let engine = world.engine();
    for n in 0..20_000 {
        launch(&engine, n).await;
    }
    assert_eq!(world.running().len(), 20_000);
}

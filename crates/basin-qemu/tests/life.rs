//! Real QEMUs with a guest of some hundred bytes: its life and its ends.

mod support;

use basin_model::hardware::MachineVersion;
use basin_model::vm::{CpuModel, Machine as MachineType};
use basin_qemu::{Engine, EngineError, MachineEvent, MachineState};
use support::guest::says;
use support::{Server, become_state, booted, hear, launch, next};
use tokio::io::AsyncWriteExt;

const TYPES: [MachineType; 2] = [MachineType::Q35, MachineType::Microvm];

#[tokio::test]
async fn a_guest_gets_the_cpu_and_the_machine_that_were_fixed() {
    let server = Server::new();
    let engine = server.engine().await;
    let facts = engine.hardware_facts().expect("QEMU says what it can do").clone();
    assert!(facts.cpus.runs("Nehalem-v1"), "{facts:?}");
    let mut spec = server.spec(MachineType::Q35);
    spec.cpu_model = CpuModel::Named("Nehalem-v1".to_owned());
    spec.machine_version = Some(facts.q35[0]);
    let (machine, mut console) = launch(&engine, &spec).await;
    booted(&*machine).await;
    console.write_all(b"x").await.unwrap();
    hear(&mut console, b"x").await;
    machine.kill().await.unwrap();

    // One that this QEMU has not: refused in QEMU's own words, and nothing stays.
    spec.machine_version = Some(MachineVersion::new(6, 66));
    let error = engine.launch(&spec, vec![]).await.err().unwrap().to_string();
    assert!(error.contains("list supported machines"), "{error}");
}

#[tokio::test]
async fn a_guest_boots_talks_pauses_and_is_reset() {
    for machine_type in TYPES {
        let server = Server::new();
        let engine = server.engine().await;
        let spec = server.spec(machine_type);
        let (machine, mut console) = launch(&engine, &spec).await;
        let mut events = machine.events();
        booted(&*machine).await;
        console.write_all(b"x").await.unwrap();
        hear(&mut console, b"x").await;
        assert_eq!(machine.state().await.unwrap(), MachineState::Running);
        machine.pause().await.unwrap();
        assert_eq!(machine.state().await.unwrap(), MachineState::Paused);
        machine.pause().await.unwrap();
        machine.resume().await.unwrap();
        machine.resume().await.unwrap();
        machine.reset().await.unwrap();
        hear(&mut console, b"G").await;
        for expect in
            [MachineEvent::Paused, MachineEvent::Resumed, MachineEvent::Reset { by_guest: false }]
        {
            assert_eq!(next(&mut events).await, expect, "{machine_type:?}");
        }
        let stats = machine.balloon().await.unwrap();
        assert_eq!((stats.actual, stats.free), (spec.memory, None));
        machine.set_balloon(basin_model::Bytes::mib(16)).await.unwrap();
        assert!(machine.guest_info().await.is_none());
        assert!(machine.resident().unwrap() > basin_model::Bytes::mib(4));
        assert!(machine.cpu_time().is_some());
        machine.press_power_button().await.unwrap();
        machine.kill().await.unwrap();
        machine.kill().await.unwrap();
        // SeaBIOS, started by a reset, resets once more.
        let firmware_resets = MachineEvent::Reset { by_guest: true };
        let mut exited = next(&mut events).await;
        while exited == firmware_resets {
            exited = next(&mut events).await;
        }
        assert!(
            matches!(&exited, MachineEvent::Exited { detail } if detail.contains("SIGKILL")),
            "{exited:?}"
        );
        assert_eq!(machine.state().await.unwrap(), MachineState::Gone);
        assert!(matches!(machine.pause().await, Err(EngineError::Gone)));
        assert!(machine.cpu_time().is_none());
        let log = std::fs::read(machine.console_log()).unwrap();
        assert_eq!(log.iter().filter(|b| **b == b'G').count(), 2, "{log:?}");
    }
}

/// Sends the guest a letter; tells what came of it, in events and in state.
async fn check(machine_type: MachineType, letter: &[u8], expect: MachineEvent, then: MachineState) {
    let server = Server::new();
    let engine = server.engine().await;
    let (machine, mut console) = launch(&engine, &server.spec(machine_type)).await;
    let mut events = machine.events();
    booted(&*machine).await;
    console.write_all(letter).await.unwrap();
    assert_eq!(next(&mut events).await, expect, "{machine_type:?}");
    if then == MachineState::Running {
        hear(&mut console, b"G").await;
    } else {
        // The event comes first, the state right after it.
        become_state(&*machine, then.clone()).await;
    }
    assert_eq!(machine.state().await.unwrap(), then, "{machine_type:?}");
    machine.reset().await.unwrap();
    hear(&mut console, b"G").await;
    assert_eq!(machine.state().await.unwrap(), MachineState::Running, "{machine_type:?}");
    machine.kill().await.unwrap();
}

#[tokio::test]
async fn a_guest_that_turns_itself_off_is_off() {
    for (machine, letter) in TYPES.into_iter().zip(says::POWER_OFF) {
        check(machine, letter, MachineEvent::Shutdown { by_guest: true }, MachineState::Shutdown)
            .await;
    }
}

#[tokio::test]
async fn a_guest_that_reboots_runs_again() {
    for (machine, letter) in TYPES.into_iter().zip(says::REBOOT) {
        check(machine, letter, MachineEvent::Reset { by_guest: true }, MachineState::Running).await;
    }
}

#[tokio::test]
async fn a_guest_that_panics_is_stopped() {
    for (machine, letter) in TYPES.into_iter().zip(says::PANIC) {
        check(machine, letter, MachineEvent::Panicked, MachineState::Crashed).await;
    }
}

#[tokio::test]
async fn a_guest_that_hangs_is_caught_by_its_watchdog() {
    for (machine, letter) in TYPES.into_iter().zip(says::WATCHDOG) {
        check(machine, letter, MachineEvent::Watchdog, MachineState::Crashed).await;
    }
}

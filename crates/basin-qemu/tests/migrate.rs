//! Real QEMUs that hand a guest over, and everything that can be in the way.

mod support;

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use async_trait::async_trait;
use basin_model::Bytes;
use basin_model::vm::Machine as MachineType;
use basin_qemu::migrate::{AlwaysOpen, DriveError, Gate, MigrationKey, MigrationPhase, Policy};
use basin_qemu::{BootSpec, Engine, EngineError, Machine, MachineEvent, MachineState};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::pair::{HERE, Pair, answers, drive, drive_through, limits, phase, still_right};
use support::{adopt_one, become_state, hear};
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;

const TYPES: [MachineType; 2] = [MachineType::Q35, MachineType::Microvm];

fn signal(machine: &dyn Machine, signal: Signal) {
    kill(Pid::from_raw(machine.process().pid as i32), signal).unwrap();
}

#[tokio::test]
async fn a_guest_moves_there_and_back() {
    for machine_type in TYPES {
        let mut pair = Pair::small(machine_type).await;
        pair.console.write_all(b"a").await.unwrap();
        hear(&mut pair.console, b"a").await;
        let mut events = pair.machine.events();
        let (there, moved) = pair.go(Policy::default()).await;
        assert!(moved.transferred > Bytes::ZERO && !moved.postcopy);
        become_state(&*there, MachineState::Running).await;
        assert_eq!(pair.machine.state().await.unwrap(), MachineState::Migrated);
        let mut told = Vec::new();
        while let Ok(event) = events.try_recv() {
            told.push(event);
        }
        let at = |event: &MachineEvent| told.iter().position(|e| e == event);
        let reached = |phase| at(&MachineEvent::Migration(phase));
        assert!(at(&MachineEvent::Switching) < reached(MigrationPhase::PreSwitchover), "{told:?}");
        assert!(reached(MigrationPhase::Completed).is_some(), "{told:?}");
        assert_eq!(at(&MachineEvent::Paused), None, "{told:?}");
        // Nothing of what would make it run twice.
        for refused in [pair.machine.resume().await, pair.machine.reset().await] {
            assert!(matches!(refused, Err(EngineError::Refused { .. })), "{refused:?}");
        }
        answers(&*there).await;
        pair.machine.kill().await.unwrap();

        // The target was launched waiting; it is as good a source as any.
        let back = Pair { source: pair.target, target: pair.source, machine: there, ..pair };
        let (here, _) = back.go(Policy::default()).await;
        become_state(&*here, MachineState::Running).await;
        answers(&*here).await;
        for machine in [here, back.machine] {
            machine.kill().await.unwrap();
        }
    }
}

#[tokio::test]
async fn no_write_is_lost_of_a_guest_that_writes_as_fast_as_it_can() {
    let mut pair = Pair::dirty(MachineType::Q35).await;
    for _ in 0..6 {
        let (there, _) = pair.go(Policy::default()).await;
        still_right(&*there).await;
        pair.machine.kill().await.unwrap();
        let Pair { source, target, .. } = pair;
        pair = Pair { source: target, target: source, machine: there, ..pair };
    }
    pair.machine.kill().await.unwrap();
}

#[tokio::test]
async fn a_paused_guest_stays_paused() {
    let pair = Pair::small(MachineType::Q35).await;
    pair.machine.pause().await.unwrap();
    let (there, _) = pair.go(Policy::default()).await;
    become_state(&*there, MachineState::Paused).await;
    there.resume().await.unwrap();
    answers(&*there).await;
}

#[tokio::test]
async fn who_does_not_know_the_key_gets_nothing() {
    let mut pair = Pair::small(MachineType::Q35).await;
    pair.hang_up();
    let (there, address) = pair.expect().await;
    let keys = pair.to.config.run_dir.join(format!("vms/{}/migration", pair.spec.vm));
    assert!(keys.join("keys.psk").exists());
    // Not even TLS.
    let mut plain = TcpStream::connect(address).unwrap();
    plain.write_all(b"QEVM\0\0\0\x03").unwrap();
    drop(plain);
    let mut outgoing = pair.outgoing(address);
    outgoing.key = MigrationKey::fresh();
    pair.machine.migrate(&outgoing).await.unwrap();
    let failed = drive(&*pair.machine, pair.channel, Policy::default()).await;
    assert!(matches!(failed, Err(DriveError::Failed { .. })), "{failed:?}");
    answers(&*pair.machine).await;
    assert_eq!(there.state().await.unwrap(), MachineState::Incoming);
    // The target waits on for who knows it.
    pair.machine.migrate(&pair.outgoing(address)).await.unwrap();
    drive(&*pair.machine, pair.channel, Policy::default()).await.unwrap();
    become_state(&*there, MachineState::Running).await;
    answers(&*there).await;
    phase(&*there, |phase| *phase == MigrationPhase::Completed).await;
    for server in [&pair.from, &pair.to] {
        let keys = server.config.run_dir.join(format!("vms/{}/migration", pair.spec.vm));
        assert!(!keys.exists(), "{}", keys.display());
    }
}

#[tokio::test]
async fn a_target_that_is_not_there_is_a_failure_and_no_harm() {
    let mut pair = Pair::small(MachineType::Microvm).await;
    pair.hang_up();
    // A port nobody listens at: it was given to somebody and given back.
    let free = std::net::TcpListener::bind((HERE, 0)).unwrap().local_addr().unwrap();
    pair.machine.migrate(&pair.outgoing(free)).await.unwrap();
    let failed = drive(&*pair.machine, pair.channel, Policy::default()).await;
    assert!(
        matches!(&failed, Err(DriveError::Failed { why }) if why.contains("refused")),
        "{failed:?}"
    );
    answers(&*pair.machine).await;
}

/// A gate at which something happens.
struct Halt<F>(F);

#[async_trait]
impl<F: Fn() -> Result<(), String> + Send + Sync> Gate for Halt<F> {
    async fn before_switch(&self) -> Result<(), String> {
        (self.0)()
    }
}

/// A gate that never opens, at which somebody cancels.
struct Hangs(CancellationToken);

#[async_trait]
impl Gate for Hangs {
    async fn before_switch(&self) -> Result<(), String> {
        self.0.cancel();
        std::future::pending().await
    }
}

#[tokio::test]
async fn cancelled_at_any_point_the_guest_goes_on() {
    let pair = Pair::dirty(MachineType::Q35).await;
    // While it copies.
    for wait in [0, 20, 300] {
        let (there, address) = pair.expect().await;
        let mut outgoing = pair.outgoing(address);
        outgoing.limits = limits(Some(2));
        pair.machine.migrate(&outgoing).await.unwrap();
        let cancel = CancellationToken::new();
        let later = cancel.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            later.cancel();
        });
        let policy = Policy { bandwidth: outgoing.limits.bandwidth, ..Policy::default() };
        let end = drive_through(&*pair.machine, pair.channel, policy, &AlwaysOpen, &cancel).await;
        assert!(matches!(end, Err(DriveError::Cancelled)), "{end:?}");
        become_state(&*there, MachineState::Gone).await;
        still_right(&*pair.machine).await;
    }
    // In the last moment: the guest is stopped already.
    let cancel = CancellationToken::new();
    let cancels = cancel.clone();
    let late = Halt(move || {
        cancels.cancel();
        Ok(())
    });
    // And while the gate is asked, which never answers.
    let hanging = CancellationToken::new();
    let hangs = Hangs(hanging.clone());
    let closed = Halt(|| Err("the disks are not in step".to_owned()));
    for (gate, why, cancel) in [
        (&late as &dyn Gate, "was cancelled", &cancel),
        (&hangs, "was cancelled", &hanging),
        (&closed, "not in step", &CancellationToken::new()),
    ] {
        let (there, address) = pair.expect().await;
        pair.machine.migrate(&pair.outgoing(address)).await.unwrap();
        let end =
            drive_through(&*pair.machine, pair.channel, Policy::default(), gate, cancel).await;
        let end = end.unwrap_err().to_string();
        assert!(end.contains(why), "{end}");
        become_state(&*there, MachineState::Gone).await;
        become_state(&*pair.machine, MachineState::Running).await;
        still_right(&*pair.machine).await;
    }
    let (there, _) = pair.go(Policy::default()).await;
    still_right(&*there).await;
}

#[tokio::test]
async fn nobody_cancels_what_may_run_at_the_target() {
    let mut pair = Pair::small(MachineType::Q35).await;
    pair.hang_up();
    let (there, address) = pair.expect().await;
    pair.machine.migrate(&pair.outgoing(address)).await.unwrap();
    phase(&*pair.machine, |phase| *phase == MigrationPhase::PreSwitchover).await;
    assert_eq!(pair.machine.state().await.unwrap(), MachineState::Switching);
    // The target reads nothing more, and the source's kernel takes what is left.
    signal(&*there, Signal::SIGSTOP);
    pair.machine.continue_switchover().await.unwrap();
    phase(&*pair.machine, |phase| *phase == MigrationPhase::Completed).await;
    pair.machine.cancel_migration().await.unwrap();
    assert_eq!(pair.machine.state().await.unwrap(), MachineState::Migrated);
    // It is known to be dead, and it never ran.
    there.kill().await.unwrap();
    pair.machine.reclaim().await.unwrap();
    become_state(&*pair.machine, MachineState::Running).await;
    pair.machine.reclaim().await.unwrap();
    answers(&*pair.machine).await;
    // And it can go again.
    let (there, _) = pair.go(Policy::default()).await;
    answers(&*there).await;
}

#[tokio::test]
async fn a_side_that_dies_leaves_the_guest_or_nothing_at_the_other() {
    let pair = Pair::dirty(MachineType::Microvm).await;
    for held in [false, true] {
        let (there, address) = pair.expect().await;
        let mut outgoing = pair.outgoing(address);
        outgoing.limits = limits((!held).then_some(2));
        pair.machine.migrate(&outgoing).await.unwrap();
        let at = if held { MigrationPhase::PreSwitchover } else { MigrationPhase::Active };
        phase(&*pair.machine, |phase| *phase == at).await;
        there.kill().await.unwrap();
        let failed = drive(&*pair.machine, pair.channel, Policy::default()).await;
        assert!(matches!(failed, Err(DriveError::Failed { .. })), "{failed:?}");
        become_state(&*pair.machine, MachineState::Running).await;
        still_right(&*pair.machine).await;
    }
    let (there, address) = pair.expect().await;
    let mut outgoing = pair.outgoing(address);
    outgoing.limits = limits(Some(2));
    pair.machine.migrate(&outgoing).await.unwrap();
    phase(&*pair.machine, |phase| *phase == MigrationPhase::Active).await;
    signal(&*pair.machine, Signal::SIGKILL);
    let policy = Policy { bandwidth: outgoing.limits.bandwidth, ..Policy::default() };
    let gone = drive(&*pair.machine, pair.channel, policy).await;
    assert!(matches!(gone, Err(DriveError::SourceGone)), "{gone:?}");
    become_state(&*there, MachineState::Gone).await;
    assert!(pair.target.cgroups().list().unwrap().is_empty());
}

#[tokio::test]
async fn restarted_daemons_on_both_sides_finish_it() {
    let mut pair = Pair::dirty(MachineType::Q35).await;
    for held in [false, true] {
        let (there, address) = pair.expect().await;
        let mut outgoing = pair.outgoing(address);
        outgoing.limits = limits((!held).then_some(2));
        pair.machine.migrate(&outgoing).await.unwrap();
        let at = if held { MigrationPhase::PreSwitchover } else { MigrationPhase::Active };
        phase(&*pair.machine, |phase| *phase == at).await;

        drop((there, pair.machine, pair.source, pair.target));
        let (source, target) = (pair.from.engine().await, pair.to.engine().await);
        let machine = adopt_one(&source, pair.spec.vm).await;
        let there = adopt_one(&target, pair.spec.vm).await;
        assert_eq!(there.state().await.unwrap(), MachineState::Incoming);
        assert_eq!(there.listen(HERE).await.unwrap(), address);
        assert_eq!(there.hardware(), machine.hardware());
        let expect = if held { MachineState::Switching } else { MachineState::Running };
        assert_eq!(machine.state().await.unwrap(), expect);
        let mut events = machine.events();
        drive(&*machine, pair.channel, Policy::default()).await.unwrap();
        while let Ok(event) = events.try_recv() {
            assert_ne!(event, MachineEvent::Paused);
        }
        still_right(&*there).await;
        drop((machine, there, source, target));
        // After the end too.
        let (source, target) = (pair.from.engine().await, pair.to.engine().await);
        let left = adopt_one(&source, pair.spec.vm).await;
        assert_eq!(left.state().await.unwrap(), MachineState::Migrated);
        left.kill().await.unwrap();
        let machine = adopt_one(&target, pair.spec.vm).await;
        assert_eq!(machine.state().await.unwrap(), MachineState::Running);
        let Pair { from, to, .. } = pair;
        pair = Pair { from: to, to: from, source: target, target: source, machine, ..pair };
    }
}

#[tokio::test]
async fn a_machine_that_an_older_basin_started_moves() {
    let pair = Pair::small(MachineType::Q35).await;
    let record = pair.from.config.state_dir.join(format!("vms/{}/machine.json", pair.spec.vm));
    let mut old: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    for new in ["hardware", "incoming"] {
        old.as_object_mut().unwrap().remove(new).unwrap();
    }
    old["spec"].as_object_mut().unwrap().remove("machine_version");
    std::fs::write(&record, old.to_string()).unwrap();
    let known = pair.machine.hardware();
    drop((pair.machine, pair.source));
    let source = pair.from.engine().await;
    let machine = adopt_one(&source, pair.spec.vm).await;
    assert_eq!(machine.hardware(), known);
    let pair = Pair { machine, source, ..pair };
    let (there, _) = pair.go(Policy::default()).await;
    answers(&*there).await;
}

#[tokio::test]
async fn uefi_variables_come_along() {
    let mut pair = Pair::new(|server| {
        let mut spec = server.spec(MachineType::Q35);
        spec.memory = Bytes::mib(128);
        let vars = server.config.state_dir.join("vms").join(spec.vm.to_string()).join("nvram.fd");
        spec.boot = BootSpec::Uefi { vars };
        spec
    })
    .await;
    // It waits for a key: in its shell, or in its menu where a busy host made the shell end.
    hear(&mut pair.console, b"Press ").await;
    let BootSpec::Uefi { vars: from } = pair.spec.boot.clone() else { unreachable!() };
    let to = pair.to.config.state_dir.join(format!("vms/{}/nvram.fd", pair.spec.vm));
    pair.spec.boot = BootSpec::Uefi { vars: to.clone() };
    let template = std::fs::read("/usr/share/OVMF/OVMF_VARS_4M.fd").unwrap();
    let (there, _) = pair.go(Policy::default()).await;
    become_state(&*there, MachineState::Running).await;
    pair.machine.kill().await.unwrap();
    let variables = std::fs::read(&from).unwrap();
    assert!(variables != template, "the firmware wrote no variable");
    let arriving = async {
        while std::fs::read(&to).unwrap() != variables {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(support::PATIENCE, arriving).await.expect("variables are missing");
}

#[tokio::test]
async fn a_bios_guest_moves() {
    let mut pair = Pair::new(|server| {
        let mut spec = server.spec(MachineType::Q35);
        spec.boot = BootSpec::Bios;
        spec
    })
    .await;
    hear(&mut pair.console, b"No bootable device").await;
    let (there, _) = pair.go(Policy::default()).await;
    become_state(&*there, MachineState::Running).await;
    // It begins anew, from the firmware that came along.
    let mut console = there.open_console().await.unwrap();
    there.reset().await.unwrap();
    hear(&mut console, b"SeaBIOS").await;
}

#[tokio::test]
async fn an_engine_says_who_may_come() {
    let pair = Pair::small(MachineType::Q35).await;
    let support = pair.target.migration_support().await.unwrap();
    let mut hardware = pair.machine.hardware();
    assert!(support.capabilities.contains("multifd") && support.compression, "{support:?}");
    assert_eq!(support.refuse(&hardware), Vec::<String>::new());
    hardware.machine = "pc-q35-99.0".to_owned();
    hardware.accelerator = "kvm".to_owned();
    let refused = support.refuse(&hardware).join("; ");
    assert!(refused.contains("no machine type pc-q35-99.0"), "{refused}");
    assert!(refused.contains("runs under kvm"), "{refused}");
    let mut incoming = pair.incoming();
    incoming.hardware.machine = "pc-q35-99.0".to_owned();
    let error = pair.target.launch_incoming(&pair.spec, vec![], &incoming).await.err().unwrap();
    assert!(error.to_string().contains("pc-q35-99.0"), "{error}");
    assert!(pair.target.cgroups().list().unwrap().is_empty());
}

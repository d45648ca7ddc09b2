//! Real QEMUs, and what befalls them and the daemon: restarts, kills, freezes, bad hosts.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use basin_model::Bytes;
use basin_model::host::QemuInfo;
use basin_model::vm::{CpuModel, Machine as MachineType};
use basin_qemu::qemu::{QemuEngine, cgroup::Cgroups};
use basin_qemu::{BootSpec, Engine, EngineError, Machine, MachineEvent, MachineSpec, MachineState};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::guest::says;
use support::{Ends, PATIENCE, Server, adopt_one, become_state, booted, hear, launch, next};
use tokio::io::AsyncWriteExt;

fn signal(machine: &dyn Machine, signal: Signal) {
    kill(Pid::from_raw(machine.process().pid as i32), signal).unwrap();
}

#[tokio::test]
async fn a_machine_is_adopted_with_what_happened_meanwhile() {
    let server = Server::new();
    let spec = server.spec(MachineType::Microvm);
    let engine = server.engine().await;
    let (machine, mut console) = launch(&engine, &spec).await;
    booted(&*machine).await;
    let process = machine.process();
    drop((machine, engine));
    console.write_all(says::POWER_OFF[1]).await.unwrap();

    let engine = server.engine().await;
    let machine = adopt_one(&engine, spec.vm).await;
    assert_eq!(machine.process(), process);
    become_state(&*machine, MachineState::Shutdown).await;
    drop(console);
    assert!(matches!(engine.launch(&spec, vec![]).await, Err(EngineError::Start(_))));
    let mut events = machine.events();
    machine.reset().await.unwrap();
    let mut console = machine.open_console().await.unwrap();
    assert_eq!(next(&mut events).await, MachineEvent::Reset { by_guest: false });
    assert_eq!(next(&mut events).await, MachineEvent::Resumed);
    console.write_all(b"y").await.unwrap();
    hear(&mut console, b"y").await;
    signal(&*machine, Signal::SIGKILL);
    assert!(matches!(next(&mut events).await, MachineEvent::Exited { .. }));
    assert!(engine.adopt().await.unwrap().is_empty());
    launch(&engine, &spec).await.0.kill().await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_controlled_is_killed() {
    let mut server = Server::new();
    server.config.request_limit = Duration::from_millis(500);
    let spec = server.spec(MachineType::Microvm);
    let engine = server.engine().await;
    let (frozen, _) = launch(&engine, &spec).await;
    signal(&*frozen, Signal::SIGSTOP);
    // A process in a machine's cgroup that is no machine.
    let stray = server.spec(MachineType::Microvm);
    let cgroup = engine.cgroups().machine(stray.vm);
    cgroup.create().unwrap();
    let mut stranger = Ends(Command::new("sleep").arg("1000").spawn().unwrap());
    for dir in cgroup.dirs() {
        std::fs::write(dir.join("cgroup.procs"), stranger.0.id().to_string()).unwrap();
    }
    drop((frozen, engine));
    let engine = server.engine().await;
    assert!(engine.adopt().await.unwrap().is_empty());
    assert!(engine.cgroups().list().unwrap().is_empty());
    // Killed, and buried by whoever killed it.
    assert!(!matches!(stranger.0.try_wait(), Ok(None)));
    // Its pid may be another's by now.
    std::mem::forget(stranger);
}

#[tokio::test]
async fn a_frozen_qemu_is_an_error_and_no_hang() {
    let mut server = Server::new();
    server.config.request_limit = Duration::from_millis(300);
    let engine = server.engine().await;
    let (machine, _console) = launch(&engine, &server.spec(MachineType::Microvm)).await;
    signal(&*machine, Signal::SIGSTOP);
    let error = machine.state().await.unwrap_err();
    assert!(error.to_string().contains("did not answer within 0.3 s"), "{error}");
    signal(&*machine, Signal::SIGCONT);
    while machine.state().await.is_err() {}
    machine.pause().await.unwrap();
    signal(&*machine, Signal::SIGSTOP);
    machine.kill().await.unwrap();
    assert_eq!(machine.state().await.unwrap(), MachineState::Gone);
}

#[tokio::test]
async fn a_machine_has_no_privileges_and_shared_memory() {
    let server = Server::new();
    let engine = server.engine().await;
    let spec = server.spec(MachineType::Q35);
    let uid = engine.uid(spec.vm).await.unwrap();
    let (machine, _console) = launch(&engine, &spec).await;
    let pid = machine.process().pid;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let check = |key: &str, expect: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words.join(" "), expect, "{key}");
    };
    assert_eq!(uid, server.config.uid_base);
    check("Uid:", &vec![uid.to_string(); 4].join(" "));
    check("Gid:", &vec![uid.to_string(); 4].join(" "));
    check("Groups:", "");
    check("CapEff:", "0000000000000000");
    check("CapBnd:", &caps_of_self("CapBnd:"));
    check("NoNewPrivs:", "1");
    check("Seccomp:", "2");
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    assert!(environment.starts_with(b"PATH=") && environment.len() < 64);
    // vhost-user servers map it.
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = maps.lines().find(|line| line.contains("memfd:memory-backend-memfd")).unwrap();
    assert!(memory.contains("rw-s"), "{memory}");
    // Nothing of the daemon's but what it was given.
    let mut own = std::collections::BTreeSet::new();
    for fd in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let target = std::fs::read_link(fd.unwrap().path()).unwrap();
        let target = target.display().to_string();
        if let Some((_, name)) = target.split_once(&server.dir.path().display().to_string()) {
            own.insert(name.rsplit('/').next().unwrap_or_default().to_owned());
        }
        assert!(!target.contains("cgroup"), "{target}");
    }
    assert_eq!(Vec::from_iter(own), ["console.log", "qemu.log"]);
    assert_eq!(engine.cgroups().machine(spec.vm).procs().unwrap(), [pid]);
    let session = nix::unistd::getsid(Some(Pid::from_raw(pid as i32))).unwrap();
    assert_eq!(session.as_raw() as u32, pid);
    machine.kill().await.unwrap();
    assert!(engine.cgroups().list().unwrap().is_empty());
    assert!(!server.config.run_dir.join("vms").join(spec.vm.to_string()).exists());
}

fn caps_of_self(key: &str) -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned()
}

#[tokio::test]
async fn a_launch_that_fails_says_why_and_leaves_nothing() {
    let server = Server::new();
    let engine = server.engine().await;
    let refuse = async |spec: &MachineSpec, expect: &str| {
        let error = engine.launch(spec, vec![]).await.err().unwrap().to_string();
        assert!(error.contains(expect), "{error}");
        assert!(engine.cgroups().list().unwrap().is_empty());
        assert!(!server.config.run_dir.join("vms").join(spec.vm.to_string()).exists());
    };
    let mut spec = server.spec(MachineType::Q35);
    spec.cpu_model = CpuModel::Named("Z80".to_owned());
    refuse(&spec, "unable to find CPU model 'Z80'").await;
    spec.cpu_model = CpuModel::Auto;
    spec.memory = Bytes(1);
    refuse(&spec, "did not start").await;
    spec.memory = Bytes::mib(32);
    spec.boot = BootSpec::Kernel {
        kernel: "/nonexistent/kernel".into(),
        initrd: None,
        command_line: String::new(),
    };
    refuse(&spec, "read /nonexistent/kernel").await;
    spec.boot = BootSpec::Bios;
    spec.cdroms = vec![basin_qemu::CdromSpec { path: "/nonexistent/iso".into() }];
    refuse(&spec, "open /nonexistent/iso").await;
    spec.cdroms.clear();
    let machine = engine.launch(&spec, vec![]).await.unwrap();
    let again = engine.launch(&spec, vec![]).await.err().unwrap().to_string();
    assert!(again.contains("is running already"), "{again}");
    let error = engine.forget(spec.vm).await.unwrap_err();
    assert!(error.to_string().contains("it runs"), "{error}");
    machine.kill().await.unwrap();
    engine.forget(spec.vm).await.unwrap();
    engine.forget(spec.vm).await.unwrap();
    assert!(!server.config.state_dir.join("vms").join(spec.vm.to_string()).exists());
}

#[tokio::test]
async fn a_launch_nobody_waits_for_leaves_nothing() {
    let server = Server::new();
    let engine = server.engine().await;
    for wait in [0, 1, 5, 20, 60] {
        let spec = server.spec(MachineType::Microvm);
        let launching = engine.launch(&spec, vec![]);
        let launched = tokio::time::timeout(Duration::from_millis(wait), launching).await;
        if let Ok(machine) = launched {
            machine.unwrap().kill().await.unwrap();
        }
    }
    let cleaning = async {
        while !engine.cgroups().list().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, cleaning).await.expect("a machine stays");
}

#[tokio::test]
async fn a_host_without_a_usable_qemu_says_so() {
    let server = Server::new();
    let script = |name: &str, text: &str, mode: u32| {
        let path = server.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let old = "#!/bin/sh\necho 'QEMU emulator version 5.2.0 (Debian 1:5.2)'\n";
    let broken = "#!/bin/sh\necho 'libfoo.so.1 is missing' >&2\nexit 127\n";
    for (binary, expect) in [
        (server.dir.path().join("absent"), "there is no"),
        (script("old", old, 0o755), "version 5.2.0, and Basin needs 7.2 or newer"),
        (script("broken", broken, 0o755), "libfoo.so.1 is missing"),
        (script("plain", "", 0o644), "cannot be run: Permission denied"),
    ] {
        let mut config = server.config.clone();
        config.binary = Some(binary);
        let engine = QemuEngine::new(config).await.unwrap();
        let QemuInfo::Unusable { reason } = engine.info() else { panic!("usable") };
        assert!(reason.contains(expect), "{reason}");
        let error = engine.launch(&server.spec(MachineType::Q35), vec![]).await.err().unwrap();
        assert!(matches!(&error, EngineError::Unusable(why) if why == reason), "{error}");
    }
    let engine = server.engine().await;
    assert!(matches!(engine.info(), QemuInfo::Usable { version, .. } if !version.is_empty()));
}

#[tokio::test]
async fn a_run_directory_too_deep_for_sockets_is_refused() {
    let mut server = Server::new();
    server.config.run_dir = server.dir.path().join("d".repeat(80));
    let engine = server.engine().await;
    let error = engine.launch(&server.spec(MachineType::Q35), vec![]).await.err().unwrap();
    assert!(error.to_string().contains("choose a shorter run directory"), "{error}");
}

#[tokio::test]
async fn a_disk_is_booted_from_as_another_user() {
    let server = Server::new();
    let engine = server.engine().await;
    let mut spec = server.spec(MachineType::Q35);
    spec.boot = BootSpec::Bios;
    // A boot sector that says K and halts.
    let mut sector = vec![0xba, 0xf8, 0x03, 0xb0, b'K', 0xee, 0xf4, 0xeb, 0xfd];
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector.resize(1 << 20, 0);
    let disk = server.dir.path().join("disk");
    std::fs::write(&disk, sector).unwrap();
    let socket = server.dir.path().join("disk.sock");
    let daemon = Command::new("qemu-storage-daemon")
        .arg("--blockdev")
        .arg(format!("driver=file,node-name=disk,filename={}", disk.display()))
        .arg("--export")
        .arg(format!(
            "vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path={}",
            socket.display()
        ))
        .spawn()
        .unwrap();
    let _daemon = Ends(daemon);
    while !socket.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let uid = engine.uid(spec.vm).await.unwrap();
    std::os::unix::fs::chown(&socket, Some(uid), Some(uid)).unwrap();
    let passable = std::fs::Permissions::from_mode(0o711);
    std::fs::set_permissions(server.dir.path(), passable).unwrap();
    spec.disks = vec![basin_qemu::DiskSpec { socket, queues: 1 }];
    let (machine, mut console) = launch(&engine, &spec).await;
    hear(&mut console, b"Booting from Hard Disk").await;
    hear(&mut console, b"K").await;
    machine.kill().await.unwrap();
}

#[tokio::test]
async fn uefi_starts_with_variables_of_its_own() {
    let server = Server::new();
    let engine = server.engine().await;
    let mut spec = server.spec(MachineType::Q35);
    spec.memory = Bytes::mib(128);
    let vars = server.config.state_dir.join("vms").join(spec.vm.to_string()).join("nvram.fd");
    spec.boot = BootSpec::Uefi { vars: vars.clone() };
    let (machine, mut console) = launch(&engine, &spec).await;
    // Of the firmware; its shell gives up on a host too busy to take its words.
    hear(&mut console, b"BdsDxe").await;
    machine.kill().await.unwrap();
    assert_eq!(std::fs::metadata(&vars).unwrap().len(), template_len());
    engine.forget(spec.vm).await.unwrap();
    assert!(!vars.exists());
}

fn template_len() -> u64 {
    std::fs::metadata(Path::new("/usr/share/OVMF/OVMF_VARS_4M.fd")).unwrap().len()
}

#[tokio::test]
async fn two_daemons_do_not_see_each_others_machines() {
    let (one, two) = (Server::new(), Server::new());
    let (first, second) = (one.engine().await, two.engine().await);
    let spec = one.spec(MachineType::Microvm);
    let (machine, _console) = launch(&first, &spec).await;
    assert!(second.adopt().await.unwrap().is_empty());
    assert_eq!(machine.state().await.unwrap(), MachineState::Running);
    assert_ne!(one.config.uid_base, two.config.uid_base);
    assert!(Cgroups::open(&two.config.cgroup_name).unwrap().list().unwrap().is_empty());
    machine.kill().await.unwrap();
}

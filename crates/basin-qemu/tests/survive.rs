//! A machine survives the process that started it.
//!
//! Without the usual harness: this program is the test, and, started by itself with an
//! argument, the daemon that is killed.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use basin_model::vm::Machine as MachineType;
use basin_qemu::qemu::QemuEngine;
use basin_qemu::{Engine, MachineEvent, MachineSpec};
use support::{Ends, PATIENCE, Server, adopt_one, booted, hear, next};
use tokio::io::AsyncWriteExt;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.as_slice() {
        [_, role, dir, cgroup, spec] if role == "daemon" => {
            daemon(dir.as_ref(), cgroup, spec).await
        }
        _ => test().await,
    }
}

/// Launches, tells when the guest is up, and waits for its end.
async fn daemon(dir: &Path, cgroup: &str, spec: &str) {
    let spec: MachineSpec = serde_json::from_str(spec).unwrap();
    let engine = QemuEngine::new(support::config(dir, cgroup)).await.unwrap();
    let machine = engine.launch(&spec, vec![]).await.unwrap();
    booted(&*machine).await;
    std::fs::write(dir.join("ready"), "").unwrap();
    std::future::pending::<()>().await;
}

async fn test() {
    let server = Server::new();
    let spec = server.spec(MachineType::Microvm);
    let program: PathBuf = std::env::current_exe().unwrap();
    let daemon = Command::new(program)
        .arg("daemon")
        .arg(server.dir.path())
        .arg(&server.config.cgroup_name)
        .arg(serde_json::to_string(&spec).unwrap())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut daemon = Ends(daemon);
    let deadline = Instant::now() + PATIENCE;
    while !server.dir.path().join("ready").exists() {
        assert!(Instant::now() < deadline, "{}", server.log(spec.vm));
        assert!(daemon.0.try_wait().unwrap().is_none(), "{}", server.log(spec.vm));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // By SIGKILL.
    drop(daemon);
    let engine = server.engine().await;
    let machine = adopt_one(&engine, spec.vm).await;
    let mut events = machine.events();
    let mut console = machine.open_console().await.unwrap();
    console.write_all(b"yes").await.unwrap();
    hear(&mut console, b"yes").await;
    // Not this process's child: its end is seen all the same.
    machine.kill().await.unwrap();
    let MachineEvent::Exited { detail } = next(&mut events).await else { panic!("no exit") };
    assert!(detail.contains("not known"), "{detail}");
    println!("a machine survives the process that started it: ok");
}

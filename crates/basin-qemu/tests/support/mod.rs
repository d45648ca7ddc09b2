//! Engines and guests for tests with real QEMUs.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod guest;
pub mod pair;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use basin_model::vm::{CpuModel, Machine as MachineType};
use basin_model::{Bytes, Generation, Vcpus, VmId};
use basin_qemu::qemu::{AcceleratorChoice, QemuConfig, QemuEngine};
use basin_qemu::{
    BootSpec, ConsoleStream, Engine, Machine, MachineEvent, MachineSpec, MachineState,
};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::sync::broadcast::Receiver;

/// Long enough that only what never happens fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// An engine in `dir`, emulating.
pub fn config(dir: &Path, cgroup_name: &str) -> QemuConfig {
    let mut config = QemuConfig::new(dir.join("state"), dir.join("run"), cgroup_name);
    config.accelerator = AcceleratorChoice::Tcg;
    config
}

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A server of its own: directories, cgroup, user ids. What runs in it ends with it.
pub struct Server {
    pub dir: TempDir,
    pub config: QemuConfig,
}

impl Server {
    pub fn new() -> Server {
        let dir = tempfile::tempdir().unwrap();
        // Machines' users go through it to their sockets and keys.
        let passable = std::fs::Permissions::from_mode(0o711);
        std::fs::set_permissions(dir.path(), passable).unwrap();
        let name = format!("bt-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let config = config(dir.path(), &name);
        std::fs::write(dir.path().join("guest"), guest::elf()).unwrap();
        Server { dir, config }
    }

    pub async fn engine(&self) -> QemuEngine {
        QemuEngine::new(self.config.clone()).await.unwrap()
    }

    pub fn guest_file(&self) -> PathBuf {
        self.dir.path().join("guest")
    }

    /// The small guest on a machine of this type.
    pub fn spec(&self, machine: MachineType) -> MachineSpec {
        MachineSpec {
            vm: VmId::from_uuid(uuid::Uuid::new_v4()),
            generation: Generation(7),
            name: "small, guest".to_owned(),
            vcpus: Vcpus(1),
            memory: Bytes::mib(32),
            cpu_model: CpuModel::Auto,
            machine,
            machine_version: None,
            boot: BootSpec::Kernel {
                kernel: self.guest_file(),
                initrd: None,
                command_line: "for=show".to_owned(),
            },
            disks: vec![],
            cdroms: vec![],
            nics: vec![],
        }
    }

    pub fn log(&self, vm: VmId) -> String {
        let log = self.config.state_dir.join("vms").join(vm.to_string()).join("qemu.log");
        std::fs::read_to_string(log).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Ok(cgroups) = basin_qemu::qemu::cgroup::Cgroups::open(&self.config.cgroup_name) else {
            return;
        };
        for vm in cgroups.list().unwrap_or_default() {
            let cgroup = cgroups.machine(vm);
            for _ in 0..500 {
                let procs = cgroup.procs().unwrap_or_default();
                for pid in &procs {
                    let pid = nix::unistd::Pid::from_raw(*pid as i32);
                    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                }
                if procs.is_empty() && cgroup.remove().is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let _ = cgroups.remove();
    }
}

/// Launches and opens the console; the guest has not been heard yet.
pub async fn launch(engine: &QemuEngine, spec: &MachineSpec) -> (Arc<dyn Machine>, ConsoleStream) {
    let machine = engine.launch(spec, vec![]).await.unwrap();
    let console = machine.open_console().await.unwrap();
    (machine, console)
}

/// Waits for the guest's first word, which may have come before the console was opened.
pub async fn booted(machine: &dyn Machine) {
    let log = machine.console_log();
    let booting = async {
        while !std::fs::read(&log).unwrap().contains(&b'G') {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, booting).await.is_ok(), "the guest does not boot");
}

/// Reads until `text` was said.
pub async fn hear(stream: &mut ConsoleStream, text: &[u8]) {
    let mut heard = Vec::new();
    let hearing = async {
        let mut byte = [0];
        while !heard.windows(text.len()).any(|part| part == text) {
            assert_eq!(stream.read(&mut byte).await.unwrap(), 1, "the console closed");
            heard.push(byte[0]);
        }
    };
    let done = tokio::time::timeout(PATIENCE, hearing).await;
    assert!(done.is_ok(), "heard only {:?}", String::from_utf8_lossy(&heard));
}

/// The next event.
pub async fn next(events: &mut Receiver<MachineEvent>) -> MachineEvent {
    tokio::time::timeout(PATIENCE, events.recv()).await.expect("no event").unwrap()
}

/// Waits for a state that must come.
pub async fn become_state(machine: &dyn Machine, expect: MachineState) {
    let becoming = async {
        while machine.state().await.unwrap() != expect {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let became = tokio::time::timeout(PATIENCE, becoming).await;
    assert!(became.is_ok(), "{:?}, not {expect:?}", machine.state().await);
}

/// A child that ends with the test, however that ends.
pub struct Ends(pub std::process::Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The one machine a new daemon finds.
pub async fn adopt_one(engine: &QemuEngine, vm: VmId) -> Arc<dyn Machine> {
    let adopted = engine.adopt().await.unwrap();
    let [one] = <[_; 1]>::try_from(adopted).unwrap_or_else(|all| panic!("{} found", all.len()));
    assert_eq!((one.vm, one.generation.0), (vm, 7));
    one.machine
}

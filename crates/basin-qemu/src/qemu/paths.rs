//! Pure. Where a machine's files are.

use std::path::{Path, PathBuf};

use basin_model::VmId;

/// The longest path a unix socket can have, its terminating zero included.
const MAX_SOCKET_PATH: usize = 108;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    pub state: PathBuf,
    pub run: PathBuf,
}

impl Paths {
    pub fn new(state_dir: &Path, run_dir: &Path, vm: VmId) -> Paths {
        let dir = |base: &Path| base.join("vms").join(vm.to_string());
        Paths { state: dir(state_dir), run: dir(run_dir) }
    }

    pub fn record(&self) -> PathBuf {
        self.state.join("machine.json")
    }
    pub fn console_log(&self) -> PathBuf {
        self.state.join("console.log")
    }
    pub fn qemu_log(&self) -> PathBuf {
        self.state.join("qemu.log")
    }
    pub fn nvram(&self) -> PathBuf {
        self.state.join("nvram.fd")
    }
    pub fn qmp(&self) -> PathBuf {
        self.run.join("qmp.sock")
    }
    pub fn serial(&self) -> PathBuf {
        self.run.join("serial.sock")
    }
    pub fn agent(&self) -> PathBuf {
        self.run.join("agent.sock")
    }

    /// The key of a migration, while there is one.
    pub fn migration(&self) -> PathBuf {
        self.run.join("migration")
    }

    /// Refuses a run directory in which no socket can be bound.
    pub fn check(&self) -> Result<(), String> {
        let longest = self.serial();
        let len = longest.as_os_str().len();
        if len >= MAX_SOCKET_PATH {
            return Err(format!(
                "the socket path {} has {len} bytes and the kernel allows {}: \
                 choose a shorter run directory",
                longest.display(),
                MAX_SOCKET_PATH - 1
            ));
        }
        Ok(())
    }
}

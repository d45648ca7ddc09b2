//! What a node is told at its start.

use std::path::PathBuf;
use std::sync::Arc;

use basin_model::hardware::HardwareFacts;
use basin_model::host::{HostCapacity, KvmVerdict, QemuInfo};
use basin_model::{Bytes, HostId};

use crate::disks::Disks;
use crate::peers::Peers;

/// How a node is set up.
#[derive(Clone)]
pub struct NodeConfig {
    pub host: HostId,
    pub state_dir: PathBuf,
    pub run_dir: PathBuf,
    /// What to offer to VMs; the whole server when absent.
    pub slice: Option<HostCapacity>,
    pub blockd: BlockdMode,
    /// What the engine's probe found.
    pub qemu: QemuInfo,
    pub kvm: KvmVerdict,
    pub peers: Arc<dyn Peers>,
    /// At most this much is kept of other servers' images; a quarter of the state
    /// directory's file system when absent.
    pub image_cache: Option<Bytes>,
    pub hardware: Option<HardwareFacts>,
}

/// Who serves disks.
#[derive(Clone)]
pub enum BlockdMode {
    /// `basin blockd`, started and watched by the node.
    Process(BlockdLauncher),
    /// Somebody else: tests.
    Given(Arc<dyn Disks>),
}

/// How blockd is started: `program args… --run-dir DIR`, DIR being `blockd` in the run directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockdLauncher {
    /// The `basin` binary.
    pub program: PathBuf,
    /// Such as `blockd`.
    pub args: Vec<String>,
}

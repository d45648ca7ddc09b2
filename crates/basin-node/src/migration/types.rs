//! Pure. What is said between servers about a live migration.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use basin_model::vm::{MigrationPolicy, Vm};
use basin_model::volume::Volume;
use basin_model::{Bytes, BytesPerSecond, HostId, TaskId, VmId, VolumeId};
use basin_qemu::Hardware;
use basin_qemu::migrate::{Channel, MigrationKey};
use serde::{Deserialize, Serialize};

/// The code of a target's refusal: nobody there waits for the rest of a guest's memory.
pub const POSTCOPY_LOST: &str = "postcopy-lost";

/// The target is to make everything ready.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Prepare {
    /// With its `migration`, which names the target.
    pub vm: Vm,
    /// What the guest has in its hands at the source.
    pub hardware: Hardware,
    pub key: MigrationKey,
    pub channel: Channel,
    /// Who may send disks.
    pub source: HostId,
    /// The volumes that move, as they are at the source.
    pub volumes: Vec<Volume>,
}

/// It is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// Where the guest's memory goes.
    pub address: SocketAddr,
    /// Where each disk goes that moves.
    pub disks: BTreeMap<VolumeId, SocketAddr>,
}

/// The source is to begin.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Begin {
    pub vm: VmId,
    pub task: TaskId,
    pub to: HostId,
    pub prepared: Prepared,
    pub key: MigrationKey,
    pub channel: Channel,
    pub policy: MigrationPolicy,
}

/// How far a migration is, as the source sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub stage: Stage,
    pub disks: Copied,
    pub memory: Copied,
    pub dirty_rate: BytesPerSecond,
    pub bandwidth: BytesPerSecond,
    /// Until the switch, where it can be said.
    pub remaining_time: Option<Duration>,
    /// The guest's vCPUs are slowed down by so many percent.
    pub throttle: u8,
    /// Memory went over so often.
    pub passes: u64,
}

/// What is there, and what is left of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Copied {
    pub total: Bytes,
    pub left: Bytes,
}

/// Where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum Stage {
    /// Disks are copied.
    Disks,
    /// Memory is copied.
    Memory,
    /// The guest goes over.
    Switching,
    /// The guest is the target's, and fetches what it misses.
    Postcopy,
    /// The same, with a broken connection: see `migrate_listen_again`.
    PostcopyBroken,
    /// The guest is the target's.
    Moved {
        /// How long the source's vCPUs stood still, as the source saw it.
        downtime: Option<Duration>,
    },
    /// The guest runs on at the source.
    Stayed {
        /// It was asked to.
        cancelled: bool,
        why: String,
        /// The disks for which the target had no space left.
        #[serde(default)]
        full: Vec<VolumeId>,
    },
    /// The target may run the guest; the source does not.
    Unclear { why: String },
    /// The source has no machine of the VM any more.
    SourceGone,
    /// The source knows of no such migration: its daemon has never been told, or the
    /// machine was restarted.
    Unknown,
}

/// What became of a target that was told to give up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aborted {
    /// Nothing of it is left, and its guest never ran there.
    Dead,
    /// Its guest runs there, or did: the target owns the VM, or is about to.
    Runs,
}

impl Stage {
    /// Nothing more happens at the source.
    pub fn is_over(&self) -> bool {
        !matches!(
            self,
            Stage::Disks
                | Stage::Memory
                | Stage::Switching
                | Stage::Postcopy
                | Stage::PostcopyBroken
        )
    }
}

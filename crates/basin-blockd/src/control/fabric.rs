//! What is said of disks that other servers use: certificates, grants, mirrors.

use std::net::SocketAddr;
use std::path::PathBuf;

use basin_model::{Bytes, Generation, HostId, VolumeId};
use serde::{Deserialize, Serialize};

use super::Layer;

/// How this server and others know each other: PEM files, read when this is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fabric {
    /// Where NBD is served; port 0: any, see [`GrantState::address`].
    pub listen: SocketAddr,
    /// Whose certificates are believed, of clients and of servers alike.
    pub ca: PathBuf,
    /// This server's certificate (and its chain) and key, for both directions.
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// One server's right to use a disk of this one over NBD, by the volume's id as name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub volume: VolumeId,
    /// Noted in the volume's generation file before anything is written.
    pub generation: Generation,
    pub layers: Vec<Layer>,
    pub read_only: bool,
    /// Who: a certificate with the URI `basin:host:ID`.
    pub host: HostId,
}

/// A grant and how it goes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GrantState {
    pub grant: Grant,
    /// Where NBD is served; none while there is no [`Fabric`].
    pub address: Option<SocketAddr>,
    pub size: Bytes,
    pub connections: u32,
    pub read_bytes: Bytes,
    pub write_bytes: Bytes,
    /// A mirror has brought everything and said so.
    pub complete: bool,
}

/// A disk of this server to be the same as one of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirror {
    /// Served here, for writing.
    pub volume: VolumeId,
    /// The export's.
    pub generation: Generation,
    /// Where the other server's blockd serves NBD.
    pub address: SocketAddr,
    /// The volume's name over there, granted for writing; at least as large.
    pub export: VolumeId,
    /// Who must answer there.
    pub host: HostId,
    /// Bytes a second that the copy may send; the guest's writes count and never wait.
    pub limit: Option<Bytes>,
}

/// A mirror and how it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorState {
    pub mirror: Mirror,
    pub phase: MirrorPhase,
    /// Of the disk's size, what is the same on both sides, and what is not yet.
    pub done: Bytes,
    pub left: Bytes,
    /// Bytes sent so far, and in the last second or so.
    pub sent: Bytes,
    pub rate: Bytes,
}

/// Where a mirror stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum MirrorPhase {
    Connecting,
    Copying,
    /// A write is answered when both sides have it.
    InSync,
    /// The device has stopped, and the target has everything and knows it. The disk is
    /// not used here any more unless it is taken back, see `Hold`.
    Finished,
    /// The target is of no use. The guest goes on with its own disk, unharmed.
    Failed {
        reason: String,
        /// There was no space left for it.
        #[serde(default)]
        full: bool,
    },
    /// It was given up.
    Stopped,
}

impl MirrorPhase {
    /// Nothing will change any more.
    pub fn has_ended(&self) -> bool {
        matches!(self, MirrorPhase::Finished | MirrorPhase::Failed { .. } | MirrorPhase::Stopped)
    }
}

//! What the daemon and blockd say to each other: one JSON object a line over a
//! unix socket that only root may open, a reply for every request, in order.

use std::path::PathBuf;

use basin_model::volume::VolumeFormat;
use basin_model::{Bytes, Generation, VolumeId};
use serde::{Deserialize, Serialize};

/// A disk to serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    pub volume: VolumeId,
    /// The hand-over of the VM that uses it; an older one is refused.
    pub generation: Generation,
    /// Where the vhost-user socket is to be.
    pub socket: PathBuf,
    /// The user that may connect to it.
    pub uid: u32,
    /// The file and, for qcow2, what its reads fall through to, top first. What
    /// an image's own header says of its backing file is never followed.
    pub layers: Vec<Layer>,
    pub read_only: bool,
    /// What the guest reads as serial number; at most 20 bytes.
    pub serial: String,
    pub queues: u16,
}

/// A file of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    pub path: PathBuf,
    pub format: VolumeFormat,
}

/// Asked by the daemon.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "request")]
pub enum Request {
    /// Who are you?
    Hello,
    /// Serve this disk. Asked again with the same export: nothing changes. With a
    /// newer generation: the older one's front end is cut off first.
    Open { export: Export },
    /// Stop serving; returns when nothing is in flight and the data are on disk.
    /// Idempotent. `generation` older than the export's is refused.
    Close { volume: VolumeId, generation: Generation },
    /// What is served, and how it goes.
    List,
    /// The file has grown; tell the guest.
    Resize { volume: VolumeId, size: Bytes },
    /// Serve on until the last front end is gone, then end.
    Quit,
}

/// Answered by blockd.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reply")]
pub enum Reply {
    Hello {
        version: String,
        pid: u32,
    },
    Done,
    Exports {
        exports: Vec<ExportState>,
    },
    /// For the operator: what was refused and why.
    Error {
        code: ErrorCode,
        message: String,
    },
}

/// Words for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The generation is older than the one that holds the disk.
    Fenced,
    NotFound,
    /// The file is not what its format says.
    Corrupt,
    /// Another process has the file open for writing.
    Locked,
    Invalid,
    Io,
}

/// A disk that is served.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExportState {
    pub export: Export,
    pub connected: bool,
    pub size: Bytes,
    pub stats: Stats,
    /// Requests wait because the datastore is full or its device fails.
    pub stalled: Option<String>,
}

/// Counters since the export was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    pub reads: u64,
    pub read_bytes: Bytes,
    pub writes: u64,
    pub write_bytes: Bytes,
    pub flushes: u64,
    pub discards: u64,
    pub errors: u64,
}

//! What the daemon and blockd say to each other: one JSON object a line over a
//! unix socket that only root may open, a reply for every request, in order.

mod fabric;

use std::path::PathBuf;

use basin_model::volume::VolumeFormat;
use basin_model::{Bytes, Generation, VolumeId};
use serde::{Deserialize, Serialize};

pub use fabric::{Fabric, Grant, GrantState, Mirror, MirrorPhase, MirrorState};

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
    /// When the file is locked and open.
    #[serde(default)]
    pub held: Held,
}

/// For how long an export has its file locked and open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Held {
    /// From `Open` to `Close`.
    #[default]
    Always,
    /// While the front end's device runs, and not a moment longer: for both sides of
    /// a migration. The socket is served and tells the size at any time. When the
    /// device starts, the file is taken as soon as whoever has it lets go; requests
    /// wait meanwhile. When it stops, data are made durable, the file is let go, and
    /// a mirror that is in sync is finished.
    WhileRunning,
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
    /// From now on the file is held otherwise. To `WhileRunning`: let go at once if
    /// the device does not run. To `Always`: taken at once if it is not held, and taken
    /// back if a mirror has brought it to another server: a hand-over is called off. Of
    /// an export for which a grant still writes, this ends the grant whether or not its
    /// mirror was finished.
    Hold { volume: VolumeId, generation: Generation, held: Held },
    /// Returns when the device has stopped, the file is let go, and a mirror, if it is
    /// `mirrored`, is finished; refused with the reason when there is none that can be,
    /// or when `limit_ms` are over. Only for an export that is held `WhileRunning`.
    AwaitRelease { volume: VolumeId, generation: Generation, mirrored: bool, limit_ms: u64 },
    /// The file has grown; tell the guest.
    Resize { volume: VolumeId, size: Bytes },
    /// From now on other servers are spoken to with these certificates; `None`: not
    /// at all. The same again reads the files anew. Connections that exist stay.
    Fabric { fabric: Option<Fabric> },
    /// Let another server read or write a disk over NBD. Idempotent.
    Grant { grant: Grant },
    /// End a grant; returns when nothing is in flight and the data are on disk.
    /// Idempotent.
    Revoke { volume: VolumeId, generation: Generation },
    /// What others may use now.
    Grants,
    /// Copy a served disk to another server, and from now on each write as well. One
    /// a disk; another one takes the place of one that has ended. Idempotent.
    Mirror { mirror: Mirror },
    /// The copy may take this much a second from now on; `None`: all it can get.
    MirrorLimit { volume: VolumeId, limit: Option<Bytes> },
    /// Give a mirror up. What the target has is of no use. Idempotent.
    StopMirror { volume: VolumeId, generation: Generation },
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
        /// Guests may be given their disks before all of their memory is there.
        #[serde(default)]
        postcopy: bool,
    },
    Done,
    Exports {
        exports: Vec<ExportState>,
    },
    Grants {
        grants: Vec<GrantState>,
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
    /// It did not happen within the time given.
    Late,
    /// The mirror broke; its target is of no use.
    MirrorFailed,
    Io,
}

/// A disk that is served.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExportState {
    pub export: Export,
    pub connected: bool,
    pub size: Bytes,
    pub stats: Stats,
    /// Requests wait: the datastore is full, its device fails, or another has the file.
    pub stalled: Option<String>,
    /// The front end's device is started.
    #[serde(default)]
    pub running: bool,
    /// The file is locked and open here.
    #[serde(default)]
    pub holds: bool,
    /// The last mirror of this disk, until the export is closed. One that a blockd
    /// before this one had begun has failed.
    #[serde(default)]
    pub mirror: Option<MirrorState>,
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

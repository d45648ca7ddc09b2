//! Pure. Every error of the layers below as a [`Problem`]: what, why, and what to do.

use basin_blockd::control::ErrorCode;
use basin_model::task::Problem;
use basin_net::NetError;
use basin_qemu::EngineError;
use basin_storage::StorageError;
use basin_store::StoreError;

use crate::NodeError;
use crate::disks::DiskError;

/// Waiting mends nothing: one try.
pub const ONCE: u32 = 1;
/// May be a passing shortage.
pub const A_FEW_TIMES: u32 = 3;
/// Something else has to come up first; about eight minutes of back-off.
pub const OFTEN: u32 = 10;

/// An error that can explain itself to a person.
pub trait Explain {
    fn problem(&self) -> Problem;

    /// How often a start that fails by it is tried in a row before it is given up.
    fn tries(&self) -> u32;
}

pub fn problem(code: &str, detail: impl Into<String>, advice: &str) -> Problem {
    Problem { code: code.to_owned(), detail: detail.into(), advice: advice.to_owned() }
}

impl From<Problem> for NodeError {
    fn from(problem: Problem) -> NodeError {
        NodeError(problem)
    }
}

pub fn node_error(error: &impl Explain) -> NodeError {
    NodeError(error.problem())
}

impl Explain for StorageError {
    fn problem(&self) -> Problem {
        let (code, advice) = match self {
            StorageError::Full { .. } => (
                "datastore-full",
                "delete volumes or images that nobody needs, or add space to the datastore",
            ),
            StorageError::NotFound(_) => {
                ("storage-not-found", "check the name or path, and that its disk is mounted")
            }
            StorageError::Corrupt { .. } => (
                "content-corrupt",
                "fetch the source anew and compare its checksum; qemu-img check tells more",
            ),
            StorageError::Checksum { .. } => (
                "checksum-wrong",
                "compare the checksum with what the source's publisher states, and fetch it anew",
            ),
            StorageError::Invalid(_) => ("storage-invalid", "correct the request"),
            StorageError::Fetch { .. } => (
                "fetch-failed",
                "check the URL, and that this server can reach it, for instance with curl",
            ),
            StorageError::NotMounted { .. } => (
                "datastore-not-mounted",
                "mount its file system on the server; Basin then opens it by itself",
            ),
            StorageError::Unshared { .. } => (
                "datastore-not-shared",
                "mount the same storage at that path on every server; Basin then checks again",
            ),
            StorageError::Cancelled => ("cancelled", "start it again if it is still wanted"),
            StorageError::Io { .. } => {
                ("storage-io", "look at the server's disks and kernel log (dmesg); then try again")
            }
        };
        problem(code, self.to_string(), advice)
    }

    fn tries(&self) -> u32 {
        match self {
            StorageError::Full { .. } => A_FEW_TIMES,
            StorageError::Io { .. }
            | StorageError::NotFound(_)
            | StorageError::NotMounted { .. }
            | StorageError::Unshared { .. } => OFTEN,
            _ => ONCE,
        }
    }
}

impl Explain for EngineError {
    fn problem(&self) -> Problem {
        let (code, advice) = match self {
            EngineError::Unusable(_) => {
                ("qemu-unusable", "install QEMU 7.2 or newer; basin doctor tells what is missing")
            }
            EngineError::Start(_) => (
                "machine-start-failed",
                "read what QEMU said; basin doctor checks the server for the usual causes",
            ),
            EngineError::Gone => ("machine-gone", "start the VM again"),
            EngineError::Refused { .. } => {
                ("machine-refused", "try again; power the VM off if it does not answer at all")
            }
            EngineError::Io { .. } => (
                "machine-io",
                "look at the server's free space, limits and kernel log; then try again",
            ),
        };
        problem(code, self.to_string(), advice)
    }

    fn tries(&self) -> u32 {
        match self {
            EngineError::Unusable(_) => ONCE,
            _ => A_FEW_TIMES,
        }
    }
}

impl Explain for NetError {
    fn problem(&self) -> Problem {
        let (code, advice) = match self {
            NetError::Overlap { .. } => {
                ("subnet-overlap", "choose a subnet that the server has no route to")
            }
            NetError::Missing { advice, .. } => ("program-missing", *advice),
            NetError::Refused { .. } => (
                "network-refused",
                "basin doctor checks what networks need; look at the kernel log as well",
            ),
            NetError::NoNetwork(_) => (
                "network-not-ready",
                "wait until the network is set up here; the server's conditions say what keeps it",
            ),
        };
        problem(code, self.to_string(), advice)
    }

    fn tries(&self) -> u32 {
        match self {
            NetError::Overlap { .. } | NetError::Missing { .. } => ONCE,
            NetError::Refused { .. } | NetError::NoNetwork(_) => OFTEN,
        }
    }
}

impl Explain for DiskError {
    fn problem(&self) -> Problem {
        let (code, advice) = match self.code {
            None => (
                "blockd-unreachable",
                "the daemon starts it again by itself; its log is blockd.log in the state directory",
            ),
            Some(ErrorCode::Fenced) => (
                "disk-fenced",
                "a newer owner has the disk; nothing to do if the VM was handed over",
            ),
            Some(ErrorCode::NotFound) => {
                ("disk-not-found", "check that the datastore's file system is mounted")
            }
            Some(ErrorCode::Corrupt) => (
                "disk-corrupt",
                "restore the disk from a backup, or repair it with qemu-img check -r",
            ),
            Some(ErrorCode::Locked) => {
                ("disk-locked", "end the other process that has the file open for writing")
            }
            Some(ErrorCode::Invalid) => ("disk-invalid", "report this as a defect of Basin"),
            Some(ErrorCode::Io) => {
                ("disk-io", "look at the server's disks and kernel log (dmesg); then try again")
            }
            Some(ErrorCode::Late) => (
                "disk-late",
                "look at the VM that still uses the disk, and at the datastore's speed",
            ),
            Some(ErrorCode::MirrorFailed) => (
                "mirror-failed",
                "look at the network and at the target server; then move the disk again",
            ),
        };
        problem(code, self.message.clone(), advice)
    }

    fn tries(&self) -> u32 {
        match self.code {
            Some(ErrorCode::Corrupt | ErrorCode::Fenced | ErrorCode::Invalid) => ONCE,
            Some(ErrorCode::Locked | ErrorCode::Late | ErrorCode::MirrorFailed) => A_FEW_TIMES,
            None | Some(ErrorCode::NotFound | ErrorCode::Io) => OFTEN,
        }
    }
}

impl Explain for StoreError {
    fn problem(&self) -> Problem {
        let advice = match self {
            StoreError::Unavailable(_) => "look at the store: its disk space, or etcd's members",
            _ => "look at the daemon's log",
        };
        problem("store-unavailable", self.to_string(), advice)
    }

    fn tries(&self) -> u32 {
        match self {
            StoreError::Unavailable(_) => OFTEN,
            _ => A_FEW_TIMES,
        }
    }
}

/// A problem of Basin's own making, with the number of tries that it is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unready {
    pub problem: Problem,
    pub tries: u32,
}

impl Explain for Unready {
    fn problem(&self) -> Problem {
        self.problem.clone()
    }

    fn tries(&self) -> u32 {
        self.tries
    }
}

//! What a disk is made of, below the queues.
//!
//! [`Block`] is the seam: whatever stands on top (queues now, scheduling and
//! mirroring later) asks a disk how it is reached and hands it checked requests.
//! A raw file is [`Reach::Ring`]: the worker puts its requests straight into its
//! own io_uring. A format that needs more than one I/O to answer a request is
//! [`Reach::Lane`]: it runs on threads of its own, so that it never holds up a
//! raw disk that shares the worker.

mod commit;
mod dirty;
mod header;
pub mod lane;
pub mod lock;
pub mod plain;
pub mod qcow2;
pub mod raw;

use std::io;
use std::sync::Arc;

use basin_model::Bytes;
use basin_model::volume::VolumeFormat;

use crate::control::{ErrorCode, Layer};
use crate::generation::Claim;
use lane::Lane;
use plain::Plain;
use raw::RawFile;

/// Why a disk cannot be opened or changed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct DiskError {
    pub code: ErrorCode,
    pub message: String,
}

impl DiskError {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> DiskError {
        DiskError { code, message: message.into() }
    }
}

/// How a disk's requests are carried out.
pub enum Reach<'a> {
    Ring(&'a RawFile),
    Lane(&'a Lane),
}

/// An open disk. Dropping it releases its locks; call [`Block::close`] first.
/// [`Block::close`] itself lets other processes have the file: a ring may keep it
/// open for some milliseconds more.
pub trait Block: Plain + Send + Sync {
    /// Whole sectors.
    fn size(&self) -> u64;
    fn reach(&self) -> Reach<'_>;
    /// All requests have ended and none will come. Data and metadata are on stable
    /// storage when it returns, and the file is unlocked, even after an error.
    fn close(&self) -> io::Result<()>;
    /// Takes up a new size; returns what the guest is to see.
    fn grow(&self, size: Bytes) -> Result<u64, DiskError>;
}

/// Opens the disk that `layers` describe, top first. `claim` is of who is to write it;
/// without one it is read only.
pub fn open(layers: &[Layer], claim: Option<Claim>) -> Result<Arc<dyn Block>, DiskError> {
    let invalid = |m: &str| DiskError::new(ErrorCode::Invalid, m);
    match layers {
        [] => Err(invalid("a disk needs at least one layer")),
        [top] if top.format == VolumeFormat::Raw => Ok(Arc::new(RawFile::open(&top.path, claim)?)),
        [top, ..] if top.format == VolumeFormat::Raw => {
            Err(invalid("a raw layer has nothing below it: only qcow2 reads fall through"))
        }
        layers => Ok(Arc::new(qcow2::Qcow2Disk::open(layers, claim)?)),
    }
}

/// The size of a disk that somebody else may be writing.
pub fn size(layers: &[Layer]) -> Result<u64, DiskError> {
    match layers {
        [] => Err(DiskError::new(ErrorCode::Invalid, "a disk needs at least one layer")),
        [top, ..] => match top.format {
            VolumeFormat::Raw => raw::size(&top.path),
            VolumeFormat::Qcow2 => qcow2::size(&top.path),
        },
    }
}

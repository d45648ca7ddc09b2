//! A raw image: a file or block device whose bytes are the disk's.
//!
//! Opened with `O_DIRECT` where file system and device take requests of one
//! sector; otherwise through the page cache.

mod plain;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use basin_model::Bytes;

use super::lock::{self, Mode};
use super::{Block, DiskError, Reach};
use crate::control::ErrorCode;
use crate::generation::Claim;
use crate::request::SECTOR;

/// An open raw image.
pub struct RawFile {
    file: File,
    size: AtomicU64,
    /// Set with `O_DIRECT`: what a buffer's address must be a multiple of.
    align: Option<u32>,
}

impl RawFile {
    pub fn open(path: &Path, claim: Option<Claim>) -> Result<RawFile, DiskError> {
        let (file, align) = open_file(path, claim)?;
        let size = AtomicU64::new(size_of_file(&file).map_err(|e| unreadable(path, &e))?);
        Ok(RawFile { file, size, align })
    }

    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Can this buffer go to the device as it is?
    pub fn takes(&self, iov: &[libc::iovec]) -> bool {
        let Some(align) = self.align else { return true };
        iov.iter().all(|v| {
            v.iov_base.addr().is_multiple_of(align as usize)
                && (v.iov_len as u64).is_multiple_of(SECTOR)
        })
    }
}

impl Block for RawFile {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn reach(&self) -> Reach<'_> {
        Reach::Ring(self)
    }

    fn close(&self) -> io::Result<()> {
        let synced = self.file.sync_data();
        lock::unlock(&self.file).and(synced)
    }

    fn grow(&self, size: Bytes) -> Result<u64, DiskError> {
        let io_error = |e| DiskError::new(ErrorCode::Io, format!("cannot read the size: {e}"));
        let now = size_of_file(&self.file).map_err(io_error)?;
        if now < size.get() || now < self.size() {
            let message = format!("the file has {} and not the {size} it should have", Bytes(now));
            return Err(DiskError::new(ErrorCode::Invalid, message));
        }
        self.size.store(now, Ordering::Relaxed);
        Ok(now)
    }
}

/// The size of an image that is not opened.
pub fn size(path: &Path) -> Result<u64, DiskError> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    file.and_then(|file| size_of_file(&file)).map_err(|e| unreadable(path, &e))
}

/// Opens and locks an image's file, for writing if there is a claim, which is made.
/// Returns the alignment of buffers if direct.
pub fn open_file(path: &Path, claim: Option<Claim>) -> Result<(File, Option<u32>), DiskError> {
    let read_only = claim.is_none();
    let open = |flags: i32| {
        OpenOptions::new()
            .read(true)
            .write(!read_only)
            .custom_flags(flags | libc::O_NONBLOCK)
            .open(path)
    };
    let (file, direct) = match open(libc::O_DIRECT) {
        Ok(file) => (file, true),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            (open(0).map_err(|e| unreadable(path, &e))?, false)
        }
        Err(e) => return Err(unreadable(path, &e)),
    };
    let kind = file.metadata().map_err(|e| unreadable(path, &e))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let message = format!("{} is neither a file nor a block device", path.display());
        return Err(DiskError::new(ErrorCode::Invalid, message));
    }
    let mode = if read_only { Mode::Shared } else { Mode::Exclusive };
    if !lock::lock(&file, mode).map_err(|e| unreadable(path, &e))? {
        let message = format!(
            "{} is in use by another process: stop what uses it, or wait until it has ended",
            path.display()
        );
        return Err(DiskError::new(ErrorCode::Locked, message));
    }
    if let Some(claim) = claim {
        claim.take(path, &file)?;
    }
    let align = if direct { direct_alignment(&file) } else { None };
    if direct && align.is_none() {
        tracing::info!(path = %path.display(), "direct I/O cannot take single sectors here: using the page cache");
    }
    // O_NONBLOCK kept the open from waiting for a FIFO's other end. With O_DIRECT
    // it would make io_uring give up with EAGAIN instead of waiting.
    let flags = if align.is_some() { libc::O_DIRECT } else { 0 };
    // SAFETY: plain integers on an open descriptor.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) } < 0 {
        return Err(unreadable(path, &io::Error::last_os_error()));
    }
    Ok((file, align))
}

pub fn unreadable(path: &Path, error: &io::Error) -> DiskError {
    let code = match error.kind() {
        io::ErrorKind::NotFound => ErrorCode::NotFound,
        _ => ErrorCode::Io,
    };
    DiskError::new(code, format!("cannot open {}: {error}", path.display()))
}

/// Whole sectors of a file or block device.
fn size_of_file(file: &File) -> io::Result<u64> {
    // SAFETY: plain integers on an open descriptor.
    let end = unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_END) };
    let end = u64::try_from(end).map_err(|_| io::Error::last_os_error())?;
    Ok(end / SECTOR * SECTOR)
}

/// What direct I/O asks of a buffer's address, if it takes single sectors.
fn direct_alignment(file: &File) -> Option<u32> {
    // SAFETY: a zeroed statx is a valid one.
    let mut st: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a C string, the result a local.
    let rc = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            &raw mut st,
        )
    };
    if rc == 0 && st.stx_mask & libc::STATX_DIOALIGN != 0 {
        let (address, offset) = (st.stx_dio_mem_align, st.stx_dio_offset_align);
        let usable = address > 0 && (1..=SECTOR).contains(&u64::from(offset));
        return usable.then_some(address);
    }
    // The file system does not say: try.
    #[repr(align(4096))]
    struct Sector([u8; SECTOR as usize]);
    let mut buf = Sector([0; SECTOR as usize]);
    // SAFETY: reads into a local of that length.
    let n = unsafe { libc::pread(file.as_raw_fd(), buf.0.as_mut_ptr().cast(), buf.0.len(), 0) };
    (n >= 0).then_some(4096)
}

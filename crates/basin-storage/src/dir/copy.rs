//! Copies a raw file inside the kernel: shared extents where the file system has
//! them, else extent by extent, holes left out.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use basin_model::Bytes;
use nix::errno::Errno;
use nix::fcntl::copy_file_range;
use nix::unistd::{Whence, lseek};
use tokio_util::sync::CancellationToken;

use super::space::{OVERHEAD, Space, allocated};
use super::sparse::pour;
use super::stage::Staged;
use crate::datastore::{Progress, StorageError};

nix::ioctl_write_int!(ficlone, 0x94, 9);

/// Copied at a time; cancellation and progress are looked after in between.
const STEP: u64 = 64 << 20;

pub fn copy_raw(
    space: &std::sync::Arc<Space>,
    (from, path): (&File, &Path),
    to: &Staged,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<(), StorageError> {
    let read = |source| StorageError::Io { what: format!("reading {}", path.display()), source };
    let size = from.metadata().map_err(read)?.len();
    // SAFETY: both descriptors are open; the call takes a number and no pointer.
    let cloned = unsafe { ficlone(to.file.as_raw_fd(), from.as_raw_fd() as u64) };
    if cloned.is_ok() {
        progress(Bytes(size), Some(Bytes(size)));
        return Ok(());
    }
    let needed = allocated(path) + OVERHEAD;
    let room = space.reserve(needed, &to.path)?;
    match extents(from, &to.file, size, progress, cancel) {
        Ok(()) => Ok(()),
        Err(Stop::Cancelled) => Err(StorageError::Cancelled),
        // Between file systems that do not know each other the bytes come this way.
        Err(Stop::Failed(Errno::EXDEV | Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EINVAL)) => {
            lseek(from, 0, Whence::SeekSet).map_err(|e| read(e.into()))?;
            let mut counted = Counted { from, done: 0, size, progress };
            pour(&mut counted, &to.file, space, &room, cancel, &mut |e| read(e)).map(|_| ())
        }
        Err(Stop::Failed(e)) => Err(space.explain("copying", needed, e.into())),
    }
}

enum Stop {
    Cancelled,
    Failed(Errno),
}

impl From<Errno> for Stop {
    fn from(e: Errno) -> Stop {
        Stop::Failed(e)
    }
}

fn extents(
    from: &File,
    to: &File,
    size: u64,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<(), Stop> {
    let mut place = 0;
    while place < size {
        place = match lseek(from, place as i64, Whence::SeekData) {
            Ok(data) => data as u64,
            // Nothing but a hole up to the end.
            Err(Errno::ENXIO) => break,
            Err(e) => return Err(e.into()),
        };
        let end = (lseek(from, place as i64, Whence::SeekHole)? as u64).min(size);
        while place < end {
            if cancel.is_cancelled() {
                return Err(Stop::Cancelled);
            }
            let (mut source, mut target) = (place as i64, place as i64);
            let step = (end - place).min(STEP) as usize;
            let n = copy_file_range(from, Some(&mut source), to, Some(&mut target), step)?;
            if n == 0 {
                return Err(Stop::Failed(Errno::EIO));
            }
            place += n as u64;
            progress(Bytes(place), Some(Bytes(size)));
        }
    }
    progress(Bytes(size), Some(Bytes(size)));
    Ok(())
}

struct Counted<'a> {
    from: &'a File,
    done: u64,
    size: u64,
    progress: &'a Progress,
}

impl io::Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = io::Read::read(&mut self.from, buffer)?;
        self.done += n as u64;
        (self.progress)(Bytes(self.done), Some(Bytes(self.size)));
        Ok(n)
    }
}

//! Kernels and initial ram disks, readable by a machine's user and by nobody else's leave.
//!
//! QEMU opens these by name, and opening `/proc/self/fd/N` asks the file's own mode. So
//! the file is copied into sealed memory, once for all machines that boot it, instead of
//! being opened up to every user of the host.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Larger than any kernel or initrd; small enough not to fill the host by mistake.
const MAX_SIZE: u64 = 1 << 30;

/// A file as it was: its device, number, size and time of change.
type Identity = (u64, u64, u64, i64, i64);

/// How much is kept of what no machine uses: what was just booted is booted again, and
/// its copy would be a good part of the start.
const KEEP: u64 = 64 << 20;

/// The copies in use, and the latest ones.
#[derive(Debug, Default)]
pub struct Images(Mutex<Copies>);

#[derive(Debug, Default)]
struct Copies {
    all: HashMap<Identity, Weak<OwnedFd>>,
    /// The latest first.
    latest: VecDeque<(Identity, Arc<OwnedFd>)>,
}

impl Copies {
    fn keep(&mut self, identity: Identity, copy: &Arc<OwnedFd>) {
        self.latest.retain(|(other, _)| *other != identity);
        self.latest.push_front((identity, copy.clone()));
        let mut total = 0;
        self.latest.retain(|((_, _, size, _, _), _)| {
            total += size;
            total <= KEEP
        });
        self.all.retain(|_, copy| copy.strong_count() > 0);
    }
}

impl Images {
    /// The content of `path` in sealed memory.
    pub fn open(&self, path: &Path) -> io::Result<Arc<OwnedFd>> {
        let mut file = File::open(path)?;
        let meta = file.metadata()?;
        if !meta.is_file() || meta.len() == 0 || meta.len() > MAX_SIZE {
            let why = "not a regular file with a kernel or an initrd in it";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let identity = (meta.dev(), meta.ino(), meta.len(), meta.ctime(), meta.ctime_nsec());
        let mut copies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(copy) = copies.all.get(&identity).and_then(Weak::upgrade) {
            copies.keep(identity, &copy);
            return Ok(copy);
        }
        let mut memory = File::from(memfd()?);
        io::copy(&mut file, &mut memory)?;
        let seals =
            libc::F_SEAL_WRITE | libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
        // SAFETY: an open descriptor and integers.
        if unsafe { libc::fcntl(memory.as_raw_fd(), libc::F_ADD_SEALS, seals) } == -1 {
            return Err(io::Error::last_os_error());
        }
        let copy = Arc::new(OwnedFd::from(memory));
        copies.all.insert(identity, Arc::downgrade(&copy));
        copies.keep(identity, &copy);
        Ok(copy)
    }
}

fn memfd() -> io::Result<OwnedFd> {
    // Kernels since 6.3 want to be told that it is no program; older ones refuse the flag.
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    for flags in [flags | libc::MFD_NOEXEC_SEAL, flags] {
        // SAFETY: a terminated string that outlives the call.
        let fd = unsafe { libc::memfd_create(c"basin-boot".as_ptr(), flags) };
        if fd >= 0 {
            // SAFETY: the kernel just made this descriptor for us alone.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    Err(io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn machines_share_one_sealed_copy_while_any_runs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        std::fs::write(&path, "old kernel").unwrap();
        let images = Images::default();
        let (first, second) = (images.open(&path).unwrap(), images.open(&path).unwrap());
        assert!(Arc::ptr_eq(&first, &second));
        let mut copy = File::from(first.try_clone().unwrap());
        assert!(copy.write_all(b"x").is_err(), "sealed");
        std::fs::write(&path, "a newer kernel").unwrap();
        let third = images.open(&path).unwrap();
        assert!(!Arc::ptr_eq(&first, &third));
        assert!(images.open(dir.path()).is_err());
        assert!(images.open(Path::new("/dev/null")).is_err());
    }

    #[test]
    fn what_nobody_uses_is_kept_within_bounds() {
        let mut copies = Copies::default();
        let size = KEEP / 3;
        for n in 0..9 {
            let copy = Arc::new(memfd().unwrap());
            let identity = (0, n, size, 0, 0);
            copies.all.insert(identity, Arc::downgrade(&copy));
            copies.keep(identity, &copy);
        }
        let kept: Vec<u64> = copies.latest.iter().map(|((_, n, ..), _)| *n).collect();
        assert_eq!((kept, copies.all.len()), (vec![8, 7, 6], 3));
    }
}

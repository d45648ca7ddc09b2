//! Locks against a file being used twice.
//!
//! Open-file-description locks on the very bytes that QEMU's tools use (a byte a
//! permission from 100, a byte a permission that others may not have from 200),
//! so that `qemu-img` refuses a disk that blockd serves, and blockd one that QEMU
//! has open. The kernel drops such a lock with the last reference to the open
//! file. Requests in flight in an io_uring hold one: a successor of a killed
//! blockd gets the lock only when the last I/O of its predecessor has ended, and
//! a late write can never land on top of a newer one.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

const HELD: i64 = 100;
const DENIED: i64 = 200;

const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// How a file is to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Read it; nobody may write.
    Shared,
    /// Write it; nobody else may write.
    Exclusive,
}

/// Takes the lock; false if someone else's use forbids it. Released with the file.
pub fn lock(file: &File, mode: Mode) -> io::Result<bool> {
    let held: &[i64] = match mode {
        Mode::Shared => &[READ],
        Mode::Exclusive => &[READ, WRITE, RESIZE],
    };
    // Announce first, look second: of two that come at once, at least one sees the other.
    let denied = [WRITE, RESIZE];
    for byte in held.iter().map(|p| HELD + p).chain(denied.map(|p| DENIED + p)) {
        if !announce(file, byte)? {
            return Ok(false);
        }
    }
    for byte in denied.iter().map(|p| HELD + p).chain(held.iter().map(|p| DENIED + p)) {
        if taken(file, byte)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Gives the lock up though the file stays open. Nothing of it may be in flight.
pub fn unlock(file: &File) -> io::Result<()> {
    let mut all = range(libc::F_UNLCK, HELD);
    all.l_len = DENIED - HELD + RESIZE + 1;
    // SAFETY: the pointer is to a local that outlives the call.
    let rc = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const all) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn range(kind: libc::c_int, byte: i64) -> libc::flock {
    // SAFETY: a zeroed flock is a valid one.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as i16;
    lock.l_whence = libc::SEEK_SET as i16;
    lock.l_start = byte;
    lock.l_len = 1;
    lock
}

fn announce(file: &File, byte: i64) -> io::Result<bool> {
    let lock = range(libc::F_RDLCK, byte);
    // SAFETY: the pointer is to a local that outlives the call.
    let rc = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if rc == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

/// Does another open file hold the byte?
fn taken(file: &File, byte: i64) -> io::Result<bool> {
    let mut lock = range(libc::F_WRLCK, byte);
    // SAFETY: the pointer is to a local that outlives the call.
    let rc = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
    if rc == 0 {
        Ok(i32::from(lock.l_type) != libc::F_UNLCK)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::path::Path;
    use std::process::Command;

    fn open(path: &Path) -> File {
        OpenOptions::new().read(true).write(true).open(path).unwrap()
    }

    fn check(first: Mode, second: Mode, expect: bool) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (a, b) = (open(file.path()), open(file.path()));
        assert!(lock(&a, first).unwrap());
        assert_eq!(lock(&b, second).unwrap(), expect, "{first:?} then {second:?}");
        drop(b);
        drop(a);
        assert!(lock(&open(file.path()), Mode::Exclusive).unwrap(), "gone with the file");
    }

    #[test]
    fn readers_share_and_a_writer_is_alone() {
        check(Mode::Shared, Mode::Shared, true);
        check(Mode::Shared, Mode::Exclusive, false);
        check(Mode::Exclusive, Mode::Shared, false);
        check(Mode::Exclusive, Mode::Exclusive, false);
    }

    #[test]
    fn a_lock_that_was_given_up_is_gone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (a, b) = (open(file.path()), open(file.path()));
        assert!(lock(&a, Mode::Exclusive).unwrap());
        unlock(&a).unwrap();
        assert!(lock(&b, Mode::Exclusive).unwrap());
    }

    #[test]
    fn qemu_respects_the_lock() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let qemu_io = |command: &str| {
            let out = Command::new("qemu-io")
                .args(["-f", "raw", "-c", command])
                .arg(file.path())
                .output()
                .expect("qemu-io of qemu-utils");
            out.status.success()
        };
        assert!(qemu_io("write 0 4096"));
        let held = open(file.path());
        assert!(lock(&held, Mode::Exclusive).unwrap());
        assert!(!qemu_io("write 0 4096"), "written while locked");
        drop(held);
        assert!(qemu_io("write 0 4096"));
    }
}

//! Locks on single bytes of a file, held by the open file: also over NFS, where the
//! server keeps them for all its clients. They are of the kind that blockd takes on
//! volumes, so where these work between two servers, those do.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

fn byte_lock(byte: i64) -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

/// Takes the byte for this open file; false if another open file has it.
pub fn try_lock(file: &File, byte: i64) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&byte_lock(byte))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Does another open file have the byte?
pub fn is_locked(file: &File, byte: i64) -> io::Result<bool> {
    let mut lock = byte_lock(byte);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

//! What the measurements of whole machines share.

#![allow(dead_code, reason = "each measurement uses its part")]

pub mod bare;
pub mod by_basin;
pub mod by_hand;
pub mod by_virsh;
pub mod libvirt;
pub mod many;
pub mod mover;
pub mod pair;
pub mod proc;
pub mod qmp;

use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

/// Milliseconds, as figures have them.
pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// What `work` returns, and how long it took.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let begin = Instant::now();
    let result = work();
    (result, ms(begin.elapsed()))
}

/// Lets a program have open files, under their numbers.
pub fn inherit(command: &mut Command, files: Vec<RawFd>) {
    let share = move || {
        for fd in &files {
            // SAFETY: clears the flags of a descriptor that is this process's own.
            if unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) } == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec it only calls fcntl.
    unsafe { command.pre_exec(share) };
}

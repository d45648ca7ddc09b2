//! Who is at the other end of a disk's socket, and whether its guest's memory is whole.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::arriving::Arriving;

/// Whom a connection is with.
pub struct Peer {
    /// Root.
    pub trusted: bool,
    pub process: Process,
    /// Once post-copy was announced here; stays when all has come.
    pub arriving: OnceLock<Arc<Arriving>>,
}

/// A process; not another one that has its number later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    pid: u32,
    started: u64,
}

/// Processes that have said, on any of their connections, that all memory has come. One is
/// enough: a front end that fails to say it to one disk does not say it to the next.
static WHOLE: Mutex<BTreeSet<Process>> = Mutex::new(BTreeSet::new());

impl Process {
    fn new(pid: u32) -> io::Result<Process> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // After the name, which may contain anything, the start is the 20th word.
        let words = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
        let started = words.clone().nth(19).and_then(|word| word.parse().ok());
        let started = started.ok_or_else(|| io::Error::other("a process without a start"))?;
        Ok(Process { pid, started })
    }

    fn lives(&self) -> bool {
        Process::new(self.pid).is_ok_and(|now| now == *self)
    }

    /// All of the memory of its guest has arrived.
    pub fn note_whole(self) {
        let mut whole = WHOLE.lock().unwrap_or_else(PoisonError::into_inner);
        whole.retain(Process::lives);
        whole.insert(self);
    }

    /// Whether its guest's memory may have holes that are to be filled: it handles page
    /// faults by itself, and has not said that it is over.
    pub fn waits_for_memory(&self) -> io::Result<bool> {
        if WHOLE.lock().unwrap_or_else(PoisonError::into_inner).contains(self) {
            return Ok(false);
        }
        for fd in std::fs::read_dir(format!("/proc/{}/fd", self.pid))? {
            match std::fs::read_link(fd?.path()) {
                Ok(link) if link.as_os_str() == "anon_inode:[userfaultfd]" => return Ok(true),
                // Closed meanwhile.
                _ => {}
            }
        }
        Ok(false)
    }
}

/// The process and the user at the other end of a unix socket.
pub fn peer(socket: &impl AsRawFd) -> io::Result<(Process, u32)> {
    // SAFETY: a zeroed ucred is a valid one.
    let mut cred: libc::ucred = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: both pointers are to locals of the size given.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut cred).cast(),
            &raw mut len,
        )
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((Process::new(cred.pid.unsigned_abs())?, cred.uid))
}

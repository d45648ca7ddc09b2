//! A handle of a process that never means another one.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub struct Pidfd(AsyncFd<OwnedFd>);

impl Pidfd {
    /// Whoever has the pid now: look again what it is, after this.
    pub fn open(pid: u32) -> io::Result<Pidfd> {
        // SAFETY: pidfd_open takes two integers and touches no memory.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the descriptor was just made for us alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: the AsyncFd owns the descriptor and closes it itself.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        Ok(Pidfd(fd.map_err(|error| error.into_parts().1)?))
    }

    /// Returns when the process is dead, be it a zombie.
    pub async fn ended(&self) {
        if self.0.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// One that has ended already is fine.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let none = std::ptr::null::<libc::siginfo_t>();
        let fd = self.0.get_ref().as_raw_fd();
        // SAFETY: the descriptor is open, no signal information is passed, flags are zero.
        let done = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, none, 0) };
        match done {
            -1 => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
                error => Err(error),
            },
            _ => Ok(()),
        }
    }
}

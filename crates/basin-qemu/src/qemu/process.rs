//! Processes: QEMU's start, without any privilege, and everybody's end by pidfd.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use basin_model::Bytes;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What to start.
pub struct Launch<'a> {
    pub program: &'a Path,
    pub arguments: &'a [String],
    /// User and group; nothing else has them.
    pub uid: u32,
    /// The group that may open /dev/kvm.
    pub group: Option<u32>,
    /// Files to join a cgroup by.
    pub cgroups: &'a [OwnedFd],
    /// Open files the process keeps, under their numbers.
    pub inherit: &'a [RawFd],
    pub log: fs::File,
}

/// Starts a process and returns its pid and pidfd once it runs the program.
pub fn spawn(launch: Launch<'_>) -> io::Result<(u32, OwnedFd)> {
    let mut command = Command::new(launch.program);
    command.args(launch.arguments);
    // Nothing of the daemon's environment: it may hold secrets.
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir("/");
    command.stdin(Stdio::null());
    command.stdout(launch.log.try_clone()?);
    command.stderr(launch.log);
    let setup = Setup {
        parent: std::process::id(),
        uid: launch.uid,
        groups: launch.group.into_iter().collect(),
        cgroups: launch.cgroups.iter().map(AsRawFd::as_raw_fd).collect(),
        inherit: launch.inherit.to_vec(),
    };
    // SAFETY: `run` is async-signal-safe: system calls on data made before the fork, no
    // allocation, no locks.
    unsafe { command.pre_exec(move || setup.run()) };
    let child = command.spawn()?;
    // Not reaped yet, so the pid is still this child's.
    let pidfd = pidfd_open(child.id())?;
    Ok((child.id(), pidfd))
}

struct Setup {
    parent: u32,
    uid: u32,
    groups: Vec<libc::gid_t>,
    cgroups: Vec<RawFd>,
    inherit: Vec<RawFd>,
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl Setup {
    /// In the child, between fork and exec.
    fn run(&self) -> io::Result<()> {
        // Until it is in its cgroup nobody would find it: it dies with the daemon. The
        // change of user below ends that.
        // SAFETY: prctl with integers only.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) })?;
        // SAFETY: no arguments.
        if unsafe { libc::getppid() }.cast_unsigned() != self.parent {
            // SAFETY: no pointers.
            unsafe { libc::_exit(1) };
        }
        for fd in &self.cgroups {
            // SAFETY: one readable byte, and a descriptor open in this process.
            let written = unsafe { libc::write(*fd, b"0".as_ptr().cast(), 1) };
            if written != 1 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: no arguments.
        check(unsafe { libc::setsid() })?;
        for fd in &self.inherit {
            // SAFETY: clears the flags of a descriptor that is this process's own.
            check(unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) })?;
        }
        limit(libc::RLIMIT_CORE, 0)?;
        limit(libc::RLIMIT_NOFILE, 16384)?;
        // SAFETY: integers only.
        unsafe { libc::umask(0o077) };
        // SAFETY: the vector outlives the call and has that many elements.
        check(unsafe { libc::setgroups(self.groups.len(), self.groups.as_ptr()) })?;
        // SAFETY: integers only.
        check(unsafe { libc::setresgid(self.uid, self.uid, self.uid) })?;
        // SAFETY: integers only.
        check(unsafe { libc::setresuid(self.uid, self.uid, self.uid) })?;
        // SAFETY: prctl with integers only.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0, 0, 0, 0) })?;
        // SAFETY: prctl with integers only.
        check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })
    }
}

fn limit(resource: libc::__rlimit_resource_t, value: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: a valid struct that outlives the call.
    check(unsafe { libc::setrlimit(resource, &limit) })
}

/// Refers to a process for good, whatever becomes of its pid. Readable when it ended.
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: integers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    check(fd)?;
    // SAFETY: the kernel just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a process's end something to wait for. A process that cannot be watched is
/// killed: nobody would learn of its end.
pub fn watch(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned, so it stays open as long as the registration.
    unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }.map_err(|error| {
        let (pidfd, error) = error.into_parts();
        let _ = kill(&pidfd);
        error
    })
}

/// Sends SIGKILL. A process that ended already is fine.
pub fn kill(pidfd: &OwnedFd) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a descriptor that is open, and no signal information.
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, none, 0)
    };
    match result {
        -1 => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            error => Err(error),
        },
        _ => Ok(()),
    }
}

/// How an ended process ended, where this process is its parent; buries it then.
pub fn reap(pidfd: &OwnedFd) -> Option<String> {
    use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
    use std::os::fd::AsFd;
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
    match waitid(Id::PIDFd(pidfd.as_fd()), flags).ok()? {
        WaitStatus::Exited(_, code) => Some(format!("exit status {code}")),
        WaitStatus::Signaled(_, signal, _) => Some(format!("killed by {signal}")),
        _ => None,
    }
}

/// Whether the process runs; a zombie does not.
pub fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

/// The arguments of a process.
pub fn command_line(pid: u32) -> io::Result<Vec<Vec<u8>>> {
    let text = fs::read(format!("/proc/{pid}/cmdline"))?;
    Ok(text.split(|b| *b == 0).map(<[u8]>::to_vec).collect())
}

/// Whether the process is a QEMU of this VM.
pub fn is_machine(pid: u32, uuid: &str) -> bool {
    command_line(pid).is_ok_and(|args| {
        args.windows(2).any(|pair| pair[0] == b"-uuid" && pair[1] == uuid.as_bytes())
    })
}

/// A process's arguments.
pub fn arguments(pid: u32) -> io::Result<Vec<String>> {
    let words = command_line(pid)?;
    Ok(words.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect())
}

/// The part of `/proc/<pid>/stat` that Basin reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub state: char,
    pub cpu_time: Duration,
    /// Since the host's boot.
    pub started: Duration,
}

pub fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // SAFETY: sysconf has no memory effects.
    let hertz = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).ok()?;
    parse_stat(&text, hertz)
}

fn parse_stat(text: &str, hertz: u64) -> Option<Stat> {
    // The name may hold spaces and parentheses; the last one closes it.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |n: usize| -> Option<Duration> {
        let ticks: u64 = fields.get(n)?.parse().ok()?;
        let nanos = u128::from(ticks) * 1_000_000_000 / u128::from(hertz.max(1));
        Some(Duration::from_nanos(u64::try_from(nanos).ok()?))
    };
    Some(Stat {
        state: fields.first()?.chars().next()?,
        cpu_time: ticks(11)? + ticks(12)?,
        started: ticks(19)?,
    })
}

/// Resident memory, the guest's included.
pub fn resident(pid: u32) -> Option<Bytes> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    // SAFETY: sysconf has no memory effects.
    let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
    Some(Bytes(pages.saturating_mul(page)))
}

/// Where a program is: `name` itself when it is a path, else the first in `PATH`.
pub fn find_program(name: &Path) -> Option<std::path::PathBuf> {
    if name.components().count() > 1 {
        return name.exists().then(|| name.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsStr::new("/usr/bin:/bin").to_owned());
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_survives_a_hostile_name() {
        let text = "7 (q) R 1) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 5 0 1200 999 888";
        let stat = parse_stat(text, 100).unwrap();
        assert_eq!((stat.state, stat.cpu_time.as_secs(), stat.started.as_secs()), ('S', 2, 12));
        assert_eq!(parse_stat("", 100), None);
        assert_eq!(parse_stat("7 (q) S 1", 100), None);
    }

    #[test]
    fn a_process_is_alive_until_it_ended() {
        assert!(is_alive(std::process::id()));
        let mut child = Command::new("true").spawn().unwrap();
        let pidfd = pidfd_open(child.id()).unwrap();
        let mut poll = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid element.
        assert_eq!(unsafe { libc::poll(&mut poll, 1, -1) }, 1);
        assert!(!is_alive(child.id()), "a zombie counts as dead");
        assert_eq!(reap(&pidfd).as_deref(), Some("exit status 0"));
        assert!(child.wait().is_err(), "it is buried");
        kill(&pidfd).unwrap();
    }
}

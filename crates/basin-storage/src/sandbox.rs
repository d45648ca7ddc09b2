//! Runs `qemu-img` on bytes from strangers, so that a flaw in it costs little: a
//! user of its own that owns nothing, no network, limits on memory, time and file
//! size, and no file but those it inherits.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, geteuid, getppid, setgid, setgroups, setuid};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::dir::STORAGE_GID;

/// Memory that the child may map.
const ADDRESS_SPACE: u64 = 4 << 30;
const OPEN_FILES: u64 = 256;
/// More output than this is cut off.
const OUTPUT: usize = 1 << 20;
/// Users that exist nowhere else; each run takes one of them.
const FIRST_UID: u32 = 1_890_000_000;
const UIDS: u32 = 1_000_000;

/// What a run may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub file_size: u64,
    pub cpu_seconds: u64,
}

/// A user for one run; `None` where this process may not change users.
pub fn spare_uid() -> Option<u32> {
    geteuid().is_root().then(|| FIRST_UID + (Uuid::new_v4().as_u128() % u128::from(UIDS)) as u32)
}

/// How a run ended.
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Ended {
    /// What went wrong, on one line.
    pub fn reason(&self) -> String {
        let text: Vec<_> =
            self.stderr.lines().map(str::trim).filter(|l| !l.is_empty()).map(plain).collect();
        match (self.status.signal(), text.is_empty()) {
            (Some(signal), _) if signal == Signal::SIGXCPU as i32 => "it took too much time".into(),
            (Some(signal), _) if signal == Signal::SIGXFSZ as i32 => "it became too large".into(),
            (Some(signal), true) => format!("qemu-img was killed by signal {signal}"),
            (None, true) => format!("qemu-img ended with {}", self.status),
            (_, false) => {
                let more = text.len().saturating_sub(FIRST_LINES);
                let words = text[..text.len() - more].join("; ");
                let words: String = words.chars().take(1000).collect();
                if more == 0 { words } else { format!("{words}; and {more} more lines") }
            }
        }
    }
}

/// A damaged image fills screens; the first lines say what is wrong.
const FIRST_LINES: usize = 2;

/// Without what only Basin knows: how it named the file to `qemu-img`.
fn plain(line: &str) -> String {
    let line = line.strip_prefix("qemu-img: ").unwrap_or(line);
    let ours = line.split_once("'json:{").and_then(|(_, rest)| rest.split_once("}': "));
    ours.map_or(line, |(_, why)| why).to_owned()
}

/// Why there is no result.
#[derive(Debug)]
pub enum RunError {
    Cancelled,
    Io(io::Error),
}

impl From<io::Error> for RunError {
    fn from(e: io::Error) -> Self {
        RunError::Io(e)
    }
}

impl From<Errno> for RunError {
    fn from(e: Errno) -> Self {
        RunError::Io(e.into())
    }
}

/// One run of a program.
pub struct Run<'a> {
    pub program: &'a str,
    pub args: Vec<OsString>,
    /// The files it inherits, under the numbers they have here.
    pub files: Vec<BorrowedFd<'a>>,
    pub uid: Option<u32>,
    pub limits: Limits,
}

impl Run<'_> {
    /// Runs to the end; kills the program when cancelled. Blocks. Each piece of
    /// its output is shown to `watch` as it comes.
    pub fn wait(
        self,
        cancel: &CancellationToken,
        watch: &mut dyn FnMut(&[u8]),
    ) -> Result<Ended, RunError> {
        let mut child = self.spawn()?;
        let result = collect(&mut child, cancel, watch);
        if result.is_err() {
            // It may have ended by itself already; then there is only the waiting.
            let _ = child.kill();
        }
        let status = child.wait()?;
        let (stdout, stderr) = result?;
        Ok(Ended { status, stdout, stderr: String::from_utf8_lossy(&stderr).into_owned() })
    }

    fn spawn(&self) -> io::Result<Child> {
        let inherit: Vec<i32> = self.files.iter().map(|f| f.as_raw_fd()).collect();
        let (uid, limits, parent) = (self.uid, self.limits, nix::unistd::getpid());
        let mut command = Command::new(self.program);
        command
            .args(&self.args)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let confine = move || -> io::Result<()> {
            for (resource, limit) in [
                (Resource::RLIMIT_AS, ADDRESS_SPACE),
                (Resource::RLIMIT_CPU, limits.cpu_seconds),
                (Resource::RLIMIT_FSIZE, limits.file_size),
                (Resource::RLIMIT_NOFILE, OPEN_FILES),
                (Resource::RLIMIT_CORE, 0),
            ] {
                // The soft limit of CPU time sends the signal that tells why.
                setrlimit(resource, limit, limit.saturating_add(5))?;
            }
            if let Some(uid) = uid {
                // A container may forbid it; what qemu-img is told to open is no network address.
                let _ = unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC);
                setgroups(&[Gid::from_raw(STORAGE_GID)])?;
                setgid(Gid::from_raw(uid))?;
                setuid(Uid::from_raw(uid))?;
            }
            prctl::set_no_new_privs()?;
            // After the change of user, which would undo it.
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            if getppid() != parent {
                return Err(Errno::ESRCH.into());
            }
            for &raw in &inherit {
                // SAFETY: `self.files` borrows it until after the spawn, so it is open in the child.
                let fd = unsafe { BorrowedFd::borrow_raw(raw) };
                fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes system calls only; it
        // allocates nothing and takes no lock.
        unsafe { command.pre_exec(confine) };
        command.spawn()
    }
}

/// Reads both outputs until both are closed.
fn collect(
    child: &mut Child,
    cancel: &CancellationToken,
    watch: &mut dyn FnMut(&[u8]),
) -> Result<(Vec<u8>, Vec<u8>), RunError> {
    let (Some(mut out), Some(mut err)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(RunError::Io(io::ErrorKind::BrokenPipe.into()));
    };
    fcntl(&out, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    fcntl(&err, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let (mut out_open, mut err_open) = (true, true);
    while out_open || err_open {
        if cancel.is_cancelled() {
            return Err(RunError::Cancelled);
        }
        let mut waiting = Vec::with_capacity(2);
        if out_open {
            waiting.push(PollFd::new(out.as_fd(), PollFlags::POLLIN));
        }
        if err_open {
            waiting.push(PollFd::new(err.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut waiting, PollTimeout::from(50u8)) {
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(e) => return Err(e.into()),
        }
        if out_open {
            out_open = drain(&mut out, &mut stdout, watch)?;
        }
        if err_open {
            err_open = drain(&mut err, &mut stderr, &mut |_| ())?;
        }
    }
    Ok((stdout, stderr))
}

/// Reads what is there; false at the end.
fn drain(
    from: &mut dyn Read,
    into: &mut Vec<u8>,
    watch: &mut dyn FnMut(&[u8]),
) -> io::Result<bool> {
    let mut piece = [0; 4096];
    match from.read(&mut piece) {
        Ok(0) => Ok(false),
        Ok(n) => {
            watch(&piece[..n]);
            let room = OUTPUT.saturating_sub(into.len());
            into.extend_from_slice(&piece[..n.min(room)]);
            Ok(true)
        }
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(true)
        }
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::fchown;

    fn shell(script: &str, file: &std::fs::File, uid: Option<u32>) -> Ended {
        let run = Run {
            program: "sh",
            args: vec!["-c".into(), script.into()],
            files: vec![file.as_fd()],
            uid,
            limits: Limits { file_size: 1 << 20, cpu_seconds: 1 },
        };
        run.wait(&CancellationToken::new(), &mut |_| ()).unwrap()
    }

    #[test]
    fn what_went_wrong_is_said_in_few_words() {
        let check = |stderr: &str, expect: &str| {
            let (status, stderr) = (ExitStatus::from_raw(1 << 8), stderr.to_owned());
            assert_eq!(Ended { status, stdout: Vec::new(), stderr }.reason(), expect);
        };
        check("", "qemu-img ended with exit status: 1");
        check("one\n\n two\n", "one; two");
        check("one\ntwo\nthree\nfour\n", "one; two; and 2 more lines");
        check(
            "qemu-img: Could not open 'json:{\"driver\":\"qcow2\",\"file\":{\"x\":1}}': L1 is bad\n",
            "L1 is bad",
        );
    }

    #[test]
    fn a_run_reaches_what_it_was_lent_and_nothing_else() {
        let file = tempfile::tempfile().unwrap();
        let uid = spare_uid().unwrap();
        fchown(&file, Some(uid), Some(uid)).unwrap();
        let lent = format!("/proc/self/fd/{}", file.as_raw_fd());
        let script = format!(
            "id -u; cat {lent} && echo lent; cat /etc/shadow || echo closed; \
             ls /sys/class/net >/dev/null; cat /proc/net/dev | grep -c : ; ulimit -v; kill -0 $PPID || echo apart"
        );
        let ended = shell(&script, &file, Some(uid));
        let said = String::from_utf8(ended.stdout).unwrap();
        // The one network device is the loopback of an empty namespace.
        let expect = format!("{uid}\nlent\nclosed\n1\n{}\napart\n", ADDRESS_SPACE >> 10);
        assert_eq!(said, expect, "{}", ended.stderr);
    }

    #[test]
    fn a_run_without_end_or_measure_is_stopped() {
        let file = tempfile::tempfile().unwrap();
        let uid = spare_uid();
        let ended = shell("while :; do :; done", &file, uid);
        assert_eq!(ended.reason(), "it took too much time");
        fchown(&file, uid, uid).unwrap();
        let fill = format!("exec head -c 4M /dev/zero >/proc/self/fd/{}", file.as_raw_fd());
        assert!(!shell(&fill, &file, uid).status.success());
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
    }
}

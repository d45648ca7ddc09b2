//! The member's process: started once, found again by its data directory, ended.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use basin_qemu::qemu::cgroup::MachineCgroup;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::config::MemberConfig;
use crate::pidfd::Pidfd;

/// Killed last when memory runs out: the cluster hangs on it.
const OOM_SCORE_ADJ: &str = "-900";
/// Guests keep the processors busy; a member that waits for one misses its heartbeats.
const NICENESS: i32 = -10;
/// A log that is longer is put aside at the next start.
const LOG_BYTES: u64 = 16 << 20;

/// A process that runs.
pub struct Process {
    pub pid: u32,
    pub arguments: Vec<String>,
    pub pidfd: Pidfd,
    /// `None`: an earlier daemon started it.
    pub child: Option<Child>,
}

pub fn log_file(config: &MemberConfig) -> PathBuf {
    config.dir.join("etcd.log")
}

/// The process that has the member's data.
pub fn find(config: &MemberConfig) -> Option<Process> {
    let mark = config.mark();
    let pids = fs::read_dir("/proc").ok()?.flatten();
    let mut pids: Vec<u32> = pids.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    // Of two, the younger one waits for the older one's lock on the data.
    pids.sort_unstable();
    pids.into_iter().find_map(|pid| {
        arguments(pid, &mark)?;
        let pidfd = Pidfd::open(pid).ok()?;
        // Looked at after opening, so the handle is of the process that was looked at.
        let arguments = arguments(pid, &mark)?;
        Some(Process { pid, arguments, pidfd, child: None })
    })
}

fn arguments(pid: u32, mark: &str) -> Option<Vec<String>> {
    let text = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let text = text.strip_suffix(b"\0").unwrap_or(&text);
    let mut words = text.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned());
    let program = words.next()?;
    let arguments: Vec<String> = words.collect();
    let ours = Path::new(&program).file_name().is_some_and(|name| name == "etcd")
        && arguments.iter().any(|a| a == mark);
    ours.then_some(arguments)
}

/// Starts it, in its own session and cgroup.
pub fn spawn(config: &MemberConfig, cgroup: Option<&MachineCgroup>) -> io::Result<Process> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.dir)?;
    let log = open_log(&log_file(config))?;
    let groups = cgroup.map(MachineCgroup::create).transpose()?.unwrap_or_default();
    let arguments = config.arguments();
    let mut command = Command::new(&config.program);
    command.args(&arguments).current_dir("/");
    // etcd takes settings from its environment, too.
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.envs(config.environment());
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // SAFETY: `enter` is async-signal-safe: system calls on what was made before the fork.
    unsafe {
        command.pre_exec(move || enter(&groups));
    }
    let child = command.spawn()?;
    let pid = child.id().ok_or_else(|| io::Error::other("it ended at once"))?;
    if let Err(error) = fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE_ADJ) {
        tracing::warn!(%error, "etcd is not shielded from the kernel's out-of-memory killer");
    }
    // Not reaped yet, so the pid is still this child's.
    Ok(Process { pid, arguments, pidfd: Pidfd::open(pid)?, child: Some(child) })
}

/// In the child, between fork and exec.
fn enter(groups: &[OwnedFd]) -> io::Result<()> {
    for group in groups {
        // SAFETY: one readable byte, and a descriptor open in this process.
        let written = unsafe { libc::write(group.as_raw_fd(), b"0".as_ptr().cast(), 1) };
        if written != 1 {
            return Err(io::Error::last_os_error());
        }
    }
    // Without the right to do so it runs as everybody does.
    // SAFETY: integers only.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
    // SAFETY: integers only.
    unsafe { libc::umask(0o077) };
    nix::unistd::setsid().map(drop).map_err(Into::into)
}

fn open_log(path: &Path) -> io::Result<File> {
    if fs::metadata(path).is_ok_and(|about| about.len() > LOG_BYTES) {
        fs::rename(path, path.with_extension("log.old"))?;
    }
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// What it said last.
pub fn last_words(config: &MemberConfig) -> Option<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(log_file(config)).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(16 << 10))).ok()?;
    let mut text = Vec::new();
    file.read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().rev().find(|l| l.starts_with('{'))?;
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    let say = |name: &str| line.get(name).and_then(|v| v.as_str());
    Some([say("msg"), say("error")].into_iter().flatten().collect::<Vec<_>>().join(": "))
}

impl Process {
    /// Ends it and waits until it is gone. etcd hands its leadership over first.
    pub async fn end(&self) -> io::Result<()> {
        for (signal, patience) in [(libc::SIGTERM, 10), (libc::SIGKILL, 10)] {
            self.pidfd.signal(signal)?;
            if timeout(Duration::from_secs(patience), self.pidfd.ended()).await.is_ok() {
                return Ok(());
            }
        }
        Err(io::Error::other(format!("etcd, process {}, does not end", self.pid)))
    }
}

//! Processes: who they are, whether they live, how they end.
//!
//! This process is the subreaper of all that its servers start: what a killed
//! daemon leaves becomes its child, and is reaped here when it ends.

use std::path::Path;
use std::sync::Once;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::wait::until;

/// What servers leave becomes a child of this process.
pub(crate) fn be_subreaper() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        nix::sys::prctl::set_child_subreaper(true).expect("become a subreaper");
    });
}

/// Whether a process runs; one that ended and was not reaped does not.
pub fn alive(pid: u32) -> bool {
    state(pid).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// Whether a signal keeps it from running; one that ended counts.
pub fn stopped(pid: u32) -> bool {
    state(pid).is_none_or(|state| matches!(state, 'T' | 't' | 'Z' | 'X'))
}

fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// The words of a process's command line.
pub fn command_line(pid: u32) -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = bytes.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned());
    words.filter(|w| !w.is_empty()).collect()
}

/// kill -9, and waits for the end. A process that is gone already is fine.
#[track_caller]
pub fn kill_hard(pid: u32) {
    signal(pid, Signal::SIGKILL);
    until(&format!("process {pid} ends"), || {
        reap(pid);
        !alive(pid)
    });
}

pub(crate) fn kill_quietly(pid: u32) {
    let _ = kill(pid_of(pid), Signal::SIGKILL);
    reap(pid);
}

#[track_caller]
pub fn signal(pid: u32, signal: Signal) {
    match kill(pid_of(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(e) => panic!("cannot send {signal} to process {pid}: {e}"),
    }
}

/// Takes a dead child away; harmless for any other process.
pub fn reap(pid: u32) {
    let _ = waitpid(pid_of(pid), Some(WaitPidFlag::WNOHANG));
}

fn pid_of(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).expect("a process id"))
}

/// All processes for which `wanted` holds, given their command line.
pub fn find(wanted: impl Fn(&[String]) -> bool) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|&pid| alive(pid) && wanted(&command_line(pid))).collect()
}

/// The processes in a cgroup file system's directory, and below it.
pub fn in_cgroup(dir: &Path) -> Vec<u32> {
    let mut pids: Vec<u32> = std::fs::read_to_string(dir.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            pids.extend(in_cgroup(&entry.path()));
        }
    }
    pids
}

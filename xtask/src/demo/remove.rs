//! Removes what a demo made: processes, namespaces, cgroups and files. It may have died
//! at any moment before.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::shell::{command, quietly};

const CGROUPS: &str = "/sys/fs/cgroup";

/// How long a daemon has to end on request, and killed processes to be gone.
const ENDS_WITHIN: Duration = Duration::from_secs(15);

/// All that has this name, or begins with it and a hyphen.
pub fn remove(name: &str, dir: &Path) -> Result<()> {
    let namespaces = named(Path::new("/run/netns"), name);
    end_processes(&namespaces)?;
    for netns in &namespaces {
        quietly(command("ip", &[&"netns", &"del", &file_name(netns)]))?;
    }
    let mut roots = named(Path::new(CGROUPS), name);
    for entry in fs::read_dir(CGROUPS).into_iter().flatten().flatten() {
        roots.extend(named(&entry.path(), name));
    }
    roots.iter().try_for_each(|root| remove_cgroup(root))?;
    // Last: until it is gone, the next demo tries again.
    fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))
}

fn named(dir: &Path, name: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    all.filter(|path| is_of(&file_name(path), name)).collect()
}

fn is_of(what: &str, name: &str) -> bool {
    what.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The daemons first, so that they do not start again what is ended after them.
fn end_processes(namespaces: &[PathBuf]) -> Result<()> {
    let all = processes(namespaces)?;
    let daemons: Vec<i32> = all.iter().copied().filter(|pid| is_daemon(*pid)).collect();
    send(&daemons, Signal::SIGTERM);
    let end = Instant::now() + ENDS_WITHIN;
    while Instant::now() < end && processes(namespaces)?.iter().any(|pid| daemons.contains(pid)) {
        std::thread::sleep(Duration::from_millis(50));
    }
    let end = Instant::now() + ENDS_WITHIN;
    loop {
        let left = processes(namespaces)?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("processes {left:?} of namespaces {namespaces:?} do not end");
        }
        send(&left, Signal::SIGKILL);
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn send(pids: &[i32], signal: Signal) {
    for pid in pids {
        // It may be gone by now, which is what is wanted.
        let _ = kill(Pid::from_raw(*pid), signal);
    }
}

/// Those in the namespaces. A zombie is in none.
fn processes(namespaces: &[PathBuf]) -> Result<Vec<i32>> {
    let mut all = Vec::new();
    for netns in namespaces {
        let mut list = Command::new("ip");
        list.args(["netns", "pids", &file_name(netns)]);
        let text = String::from_utf8(quietly(list)?)?;
        for line in text.lines() {
            all.push(line.trim().parse().context("ip netns pids")?);
        }
    }
    Ok(all)
}

fn is_daemon(pid: i32) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|b| *b == 0).nth(1) == Some(b"serve")
}

/// A cgroup and those below it; they are empty.
fn remove_cgroup(dir: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path())?;
        }
    }
    // The kernel takes a moment to let go of processes that are gone.
    let end = Instant::now() + ENDS_WITHIN;
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() > end => {
                return Err(error).with_context(|| format!("cannot remove {}", dir.display()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_demo_is_left_alone() {
        let check = |what: &str, expect: bool| assert_eq!(is_of(what, "basin-demo-12"), expect);
        check("basin-demo-12", true);
        check("basin-demo-12-srv1", true);
        check("basin-demo-123", false);
        check("basin-demo-123-srv1", false);
        check("basin-demo-1", false);
    }
}

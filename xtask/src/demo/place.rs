//! Where a demo happens: a directory, a network namespace and a cgroup of one name.
//!
//! A demo holds a lock on its directory as long as it lives. A directory that nobody
//! locks was left by one that died: every process in its namespace is its own, so
//! they can be ended, and then all the rest removed.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::shell::{command, quietly};

/// On a disk, unlike /tmp of some systems; short, for the paths of sockets.
const BASE: &str = "/var/tmp/basin-demo";
const CGROUPS: &str = "/sys/fs/cgroup";

/// How long a daemon has to end on request, and killed processes to be gone.
const ENDS_WITHIN: Duration = Duration::from_secs(15);

pub struct Place {
    name: String,
    dir: PathBuf,
    /// Let go by the kernel when this process ends, however it ends.
    _lock: File,
}

impl Place {
    /// Removes what others left, and makes a new place.
    pub fn claim() -> Result<Place> {
        if !nix::unistd::geteuid().is_root() {
            bail!("the demo makes a network namespace and cgroups: run it as root");
        }
        let base = Path::new(BASE);
        make_dir(base)?;
        // Only root's: nobody else may have put a directory there for us to remove.
        let owner = fs::symlink_metadata(base)?;
        if owner.uid() != 0 || !owner.is_dir() {
            bail!("{BASE} belongs to somebody else: remove it");
        }
        // One at a time: no other takes a directory for abandoned before it is locked.
        let gate = open_lock(&base.join("lock"))?;
        gate.lock()?;
        sweep(base)?;
        let name = format!("basin-demo-{}", std::process::id());
        let dir = base.join(std::process::id().to_string());
        make_dir(&dir)?;
        let lock = open_lock(&dir.join("lock"))?;
        lock.lock()?;
        drop(gate);
        let place = Place { name, dir, _lock: lock };
        quietly(command("ip", &[&"netns", &"add", &place.name]))?;
        quietly(command("ip", &[&"-n", &place.name, &"link", &"set", &"lo", &"up"]))?;
        Ok(place)
    }

    /// Of the namespace and of the cgroup.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn netns(&self) -> PathBuf {
        netns(&self.name)
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    pub fn socket(&self) -> PathBuf {
        self.run_dir().join("api.sock")
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    /// Copies the logs to a directory that stays.
    pub fn keep_logs(&self, to: &Path) -> Result<PathBuf> {
        if to.exists() {
            fs::remove_dir_all(to)?;
        }
        let logs = walkdir::WalkDir::new(&self.dir).into_iter().flatten();
        for log in logs.filter(|entry| entry.path().extension().is_some_and(|e| e == "log")) {
            let target = to.join(log.path().strip_prefix(&self.dir)?);
            fs::create_dir_all(target.parent().unwrap_or(to))?;
            fs::copy(log.path(), target)?;
        }
        Ok(to.to_owned())
    }

    /// Ends what runs here, and leaves nothing.
    pub fn remove(self) -> Result<()> {
        remove(&self.name, &self.dir)
    }
}

fn netns(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

fn make_dir(path: &Path) -> Result<()> {
    // Machines run as users of their own, and have to get through to their sockets.
    match DirBuilder::new().mode(0o711).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("cannot make {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn open_lock(path: &Path) -> Result<File> {
    Ok(OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?)
}

fn sweep(base: &Path) -> Result<()> {
    for entry in fs::read_dir(base)? {
        let dir = entry?.path();
        let Some(pid) = dir.file_name().and_then(|n| n.to_str()?.parse::<u32>().ok()) else {
            continue;
        };
        let lock = open_lock(&dir.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => {
                println!("==> removing what the demo of process {pid} left");
                remove(&format!("basin-demo-{pid}"), &dir)?;
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
    }
    Ok(())
}

fn remove(name: &str, dir: &Path) -> Result<()> {
    if netns(name).exists() {
        end_processes(name)?;
        quietly(command("ip", &[&"netns", &"del", &name]))?;
    }
    let mut roots = vec![Path::new(CGROUPS).join(name)];
    for entry in fs::read_dir(CGROUPS).into_iter().flatten().flatten() {
        roots.push(entry.path().join(name));
    }
    roots.iter().try_for_each(|root| remove_cgroup(root))?;
    // Last: until it is gone, the next demo tries again.
    fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))
}

/// The daemon first, so that it does not start again what is ended after it.
fn end_processes(name: &str) -> Result<()> {
    let all = processes(name)?;
    let daemons: Vec<i32> = all.iter().copied().filter(|pid| is_daemon(*pid)).collect();
    send(&daemons, Signal::SIGTERM);
    let end = Instant::now() + ENDS_WITHIN;
    while Instant::now() < end && processes(name)?.iter().any(|pid| daemons.contains(pid)) {
        std::thread::sleep(Duration::from_millis(50));
    }
    let end = Instant::now() + ENDS_WITHIN;
    loop {
        let left = processes(name)?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("processes {left:?} of namespace {name} do not end");
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

/// Those in the namespace. A zombie is in none.
fn processes(name: &str) -> Result<Vec<i32>> {
    let mut list = Command::new("ip");
    list.args(["netns", "pids", name]);
    let text = String::from_utf8(quietly(list)?)?;
    text.lines().map(|line| line.trim().parse().context("ip netns pids")).collect()
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

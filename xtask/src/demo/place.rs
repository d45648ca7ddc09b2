//! Where a demo happens: a directory, a network namespace and a cgroup of one name, and
//! of each server of several its own ones in there.
//!
//! A demo holds a lock on its directory as long as it lives. A directory that nobody
//! locks was left by one that died: every process in its namespaces is its own, so
//! they can be ended, and then all the rest removed.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::remove::remove;
use crate::shell::{command, quietly};

/// On a disk, unlike /tmp of some systems; short, for the paths of sockets.
const BASE: &str = "/var/tmp/basin-demo";

/// The demo's.
pub struct Place {
    site: Site,
    /// Let go by the kernel when this process ends, however it ends.
    _lock: File,
}

/// One server's, or one network's.
pub struct Site {
    name: String,
    dir: PathBuf,
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
        add_netns(&name)?;
        Ok(Place { site: Site { name, dir }, _lock: lock })
    }

    /// All of it.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// A part with a namespace, a cgroup and a directory of its own. Its name is short.
    pub fn part(&self, name: &str) -> Result<Site> {
        let site =
            Site { name: format!("{}-{name}", self.site.name), dir: self.site.dir.join(name) };
        make_dir(&site.dir)?;
        add_netns(&site.name)?;
        Ok(site)
    }

    /// Copies the logs to a directory that stays.
    pub fn keep_logs(&self, to: &Path) -> Result<PathBuf> {
        if to.exists() {
            fs::remove_dir_all(to)?;
        }
        let dir = &self.site.dir;
        let logs = walkdir::WalkDir::new(dir).into_iter().flatten();
        for log in logs.filter(|entry| entry.path().extension().is_some_and(|e| e == "log")) {
            let target = to.join(log.path().strip_prefix(dir)?);
            fs::create_dir_all(target.parent().unwrap_or(to))?;
            fs::copy(log.path(), target)?;
        }
        Ok(to.to_owned())
    }

    /// Ends what runs here, and leaves nothing.
    pub fn remove(self) -> Result<()> {
        remove(&self.site.name, &self.site.dir)
    }
}

impl Site {
    /// Of the namespace and of the cgroup.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn netns(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
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
}

fn add_netns(name: &str) -> Result<()> {
    quietly(command("ip", &[&"netns", &"add", &name]))?;
    quietly(command("ip", &[&"-n", &name, &"link", &"set", &"lo", &"up"]))?;
    Ok(())
}

pub fn make_dir(path: &Path) -> Result<()> {
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

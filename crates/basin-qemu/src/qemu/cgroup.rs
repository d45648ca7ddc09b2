//! The cgroup of each machine: `<mount>/<name>/vm-<id>`, in every hierarchy that has a
//! controller Basin uses (version 1), or in the one there is (version 2).
//!
//! A process joins before it becomes QEMU, so whatever runs for a VM is in its cgroup,
//! also when the daemon died halfway. Groups under another name are never touched.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use basin_model::VmId;

/// Controllers of version 1 that machines join. Not `cpuset`: a fresh group of it has no
/// CPUs and takes nobody in.
const V1_CONTROLLERS: [&str; 5] = ["cpu", "cpuacct", "memory", "blkio", "pids"];
const V2_CONTROLLERS: [&str; 4] = ["cpu", "memory", "io", "pids"];

/// The groups of one daemon.
#[derive(Debug, Clone)]
pub struct Cgroups {
    /// `<mount>/<name>` of each hierarchy; the first is the one that is listed.
    roots: Vec<PathBuf>,
    description: String,
}

impl Cgroups {
    /// Finds the hierarchies in `/proc/self/mounts` and makes the daemon's group in each.
    pub fn open(name: &str) -> io::Result<Cgroups> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if name.is_empty() || !name.bytes().all(plain) {
            let why = format!("'{name}' is not a name for a cgroup: use letters, digits, - and _");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let found = hierarchies(&fs::read_to_string("/proc/self/mounts")?);
        let roots = match &found {
            Hierarchies::V1(mounts) => mounts.iter().map(|m| m.join(name)).collect(),
            Hierarchies::V2(mount) => {
                delegate(mount);
                vec![mount.join(name)]
            }
            Hierarchies::None => {
                let why = "no cgroup file system is mounted; mount cgroup2 at /sys/fs/cgroup";
                return Err(io::Error::new(io::ErrorKind::NotFound, why));
            }
        };
        for root in &roots {
            make_dir(root)?;
        }
        if let Hierarchies::V2(_) = found {
            delegate(&roots[0]);
        }
        Ok(Cgroups { roots, description: found.describe() })
    }

    /// For the host's status: `v2`, or `v1 (cpu, memory, ...)`.
    pub fn describe(&self) -> &str {
        &self.description
    }

    /// The group of one machine, which need not exist.
    pub fn machine(&self, vm: VmId) -> MachineCgroup {
        let dirs = self.roots.iter().map(|root| root.join(format!("vm-{vm}"))).collect();
        MachineCgroup { dirs }
    }

    /// The group of a process that serves the whole server, which need not exist.
    pub fn service(&self, name: &str) -> MachineCgroup {
        MachineCgroup { dirs: self.roots.iter().map(|root| root.join(name)).collect() }
    }

    /// Machines that have a group.
    pub fn list(&self) -> io::Result<Vec<VmId>> {
        let mut vms = Vec::new();
        for root in &self.roots {
            for entry in fs::read_dir(root)? {
                let name = entry?.file_name();
                let id = name.to_str().and_then(|name| name.strip_prefix("vm-"));
                vms.extend(id.and_then(|id| id.parse::<VmId>().ok()));
            }
        }
        vms.sort();
        vms.dedup();
        Ok(vms)
    }

    /// Removes the daemon's own groups, when no machine has one. For tests and uninstall.
    pub fn remove(&self) -> io::Result<()> {
        self.roots.iter().try_for_each(|root| remove_dir(root))
    }
}

/// The group of one machine.
#[derive(Debug, Clone)]
pub struct MachineCgroup {
    dirs: Vec<PathBuf>,
}

impl MachineCgroup {
    /// Makes it and opens the files a process writes `0` to in order to join.
    pub fn create(&self) -> io::Result<Vec<OwnedFd>> {
        self.dirs
            .iter()
            .map(|dir| {
                make_dir(dir)?;
                let procs = dir.join("cgroup.procs");
                Ok(fs::OpenOptions::new().write(true).open(procs)?.into())
            })
            .collect()
    }

    /// Its directories, one for each hierarchy.
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// Live processes in it.
    pub fn procs(&self) -> io::Result<Vec<u32>> {
        let mut pids = Vec::new();
        for dir in &self.dirs {
            match fs::read_to_string(dir.join("cgroup.procs")) {
                Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        pids.sort_unstable();
        pids.dedup();
        pids.retain(|pid| super::process::is_alive(*pid));
        Ok(pids)
    }

    /// Removes it; it must have no processes.
    pub fn remove(&self) -> io::Result<()> {
        self.dirs.iter().try_for_each(|dir| remove_dir(dir))
    }
}

fn is_gone(error: &io::Error) -> bool {
    // ENODEV: the group was removed after the file was opened.
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

fn make_dir(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(io::Error::new(error.kind(), format!("cgroup {}: {error}", dir.display())))
        }
        _ => Ok(()),
    }
}

fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Lets children of `dir` use the controllers. One at a time, and without a word when one
/// cannot: the group holds its processes all the same.
fn delegate(dir: &Path) {
    for controller in V2_CONTROLLERS {
        if let Err(error) = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"))
        {
            tracing::debug!(dir = %dir.display(), controller, %error, "not delegated");
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Hierarchies {
    V1(Vec<PathBuf>),
    V2(PathBuf),
    None,
}

impl Hierarchies {
    fn describe(&self) -> String {
        match self {
            Hierarchies::V1(mounts) => {
                let names: Vec<_> = mounts.iter().filter_map(|m| m.file_name()?.to_str()).collect();
                format!("v1 ({})", names.join(", "))
            }
            Hierarchies::V2(_) => "v2".to_owned(),
            Hierarchies::None => "none".to_owned(),
        }
    }
}

/// Which hierarchies to use, from the text of `/proc/self/mounts`. Where both versions
/// are mounted, the controllers are with version 1.
fn hierarchies(mounts: &str) -> Hierarchies {
    let mut v1 = Vec::new();
    let mut v2 = None;
    for line in mounts.lines() {
        let mut fields = line.split(' ');
        let (Some(_), Some(dir), Some(kind), Some(options)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        match kind {
            "cgroup2" => v2 = v2.or(Some(PathBuf::from(dir))),
            "cgroup" if options.split(',').any(|o| V1_CONTROLLERS.contains(&o)) => {
                let dir = PathBuf::from(dir);
                if !v1.contains(&dir) {
                    v1.push(dir);
                }
            }
            _ => {}
        }
    }
    match (v1.is_empty(), v2) {
        (false, _) => Hierarchies::V1(v1),
        (true, Some(dir)) => Hierarchies::V2(dir),
        (true, None) => Hierarchies::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_in_the_mounts() {
        let v2 = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid,nsdelegate 0 0\n";
        assert_eq!(hierarchies(v2), Hierarchies::V2("/sys/fs/cgroup".into()));
        let v1 = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n\
                  cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
                  cgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0\n\
                  cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let found = hierarchies(v1);
        assert_eq!(found.describe(), "v1 (cpu,cpuacct, memory)");
        assert_eq!(hierarchies("proc /proc proc rw 0 0\n"), Hierarchies::None);
    }

    #[test]
    fn a_name_cannot_leave_its_place() {
        for bad in ["", "..", "a/b", "a b"] {
            assert!(Cgroups::open(bad).is_err(), "{bad}");
        }
    }
}

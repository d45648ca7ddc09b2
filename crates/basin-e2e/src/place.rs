//! Where one server lives: its own names, directories, cgroup and network namespace,
//! and how all of that goes away again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use crate::{mounts, process};

/// Short, for the paths of unix sockets.
pub(crate) const PREFIX: &str = "/tmp/be2e-";

/// A place of its own for a server.
#[derive(Debug)]
pub struct Place {
    /// Unique on this machine: `be2e-PID-N`. Also the name of the network namespace.
    pub name: String,
    pub dir: PathBuf,
}

impl Place {
    pub(crate) fn new() -> Place {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        static SWEEP: std::sync::Once = std::sync::Once::new();
        SWEEP.call_once(sweep);
        process::be_subreaper();
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let place = Place::of(PathBuf::from(format!("{PREFIX}{}-{n}", std::process::id())));
        fs::create_dir(&place.dir).expect("make the server's directory");
        open_up(&place.dir);
        add_netns(&place.name);
        place
    }

    fn of(dir: PathBuf) -> Place {
        let name = dir.file_name().expect("a name").to_string_lossy().into_owned();
        Place { name, dir }
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("s")
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("r")
    }

    pub fn socket(&self) -> PathBuf {
        self.run_dir().join("api.sock")
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// The server's cgroup, in each hierarchy that has one.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let root = Path::new("/sys/fs/cgroup");
        let controllers = fs::read_dir(root).into_iter().flatten().flatten().map(|e| e.path());
        let all = [root.to_owned()].into_iter().chain(controllers);
        all.map(|dir| dir.join(&self.name)).filter(|dir| dir.is_dir()).collect()
    }

    /// A command that runs in the server's network, with its mounts. Not by
    /// `ip netns exec`, which mounts another /sys and so hides the cgroups.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name));
        let mounts = mounts::namespace(self);
        if mounts.exists() {
            command.arg(format!("--mount={}", mounts.display()));
        }
        command.arg(program);
        command
    }

    /// Every process that lives in the server's network.
    pub fn processes(&self) -> Vec<u32> {
        in_netns(&self.name)
    }

    /// Every process of the server's, in its network or its control groups.
    pub fn everything(&self) -> Vec<u32> {
        let mut pids = self.processes();
        pids.extend(self.cgroups().iter().flat_map(|c| process::in_cgroup(c)));
        pids.retain(|&pid| process::alive(pid) && pid != std::process::id());
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Ends every process of the server's, and removes what the kernel holds for it.
    /// May be repeated; never fails, for it runs while a test fails.
    pub(crate) fn remove(&self) {
        self.kill_all();
        for cgroup in self.cgroups() {
            remove_cgroup(&cgroup);
        }
        for mount in mounts::mounts().into_iter().filter(|m| m.starts_with(&self.dir)) {
            let _ = nix::mount::umount2(&mount, nix::mount::MntFlags::MNT_DETACH);
        }
        for netns in [&self.name, &self.outside()] {
            let _ = Command::new("ip").args(["netns", "del", netns]).output();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }

    pub(crate) fn kill_all(&self) {
        // Some start others, and the end takes a moment: until none is left.
        for _ in 0..500 {
            let mut pids = self.everything();
            pids.extend(in_netns(&self.outside()));
            if pids.is_empty() {
                return;
            }
            for pid in pids {
                process::kill_quietly(pid);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Forgets what does not survive a reboot of the machine.
    pub(crate) fn lose_power(&self) {
        self.kill_all();
        for cgroup in self.cgroups() {
            remove_cgroup(&cgroup);
        }
        let _ = fs::remove_dir_all(self.run_dir());
        ip(&["netns", "del", &self.name]);
        add_netns(&self.name);
    }

    /// The network namespace of the world outside.
    pub(crate) fn outside(&self) -> String {
        format!("{}-x", self.name)
    }
}

/// Removes what earlier tests left that were killed themselves.
fn sweep() {
    let all = fs::read_dir("/tmp").into_iter().flatten().flatten().map(|e| e.path());
    for dir in all.filter(|p| p.to_string_lossy().starts_with(PREFIX)) {
        let place = Place::of(dir);
        let owner = place.name.split('-').nth(1).and_then(|pid| pid.parse().ok());
        if owner.is_some_and(|pid| !process::alive(pid)) {
            place.remove();
        }
    }
}

/// Machines run as users of their own: they pass through.
fn open_up(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o711)).expect("open the directory");
}

fn in_netns(name: &str) -> Vec<u32> {
    let out = Command::new("ip").args(["netns", "pids", name]).output();
    let text = out.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    text.lines().filter_map(|l| l.trim().parse().ok()).filter(|&p| process::alive(p)).collect()
}

pub(crate) fn add_netns(name: &str) {
    ip(&["netns", "add", name]);
    ip(&["-n", name, "link", "set", "lo", "up"]);
}

/// Runs something on a thread that is in a network namespace.
pub(crate) fn inside<T: Send>(netns: &str, work: impl FnOnce() -> T + Send) -> T {
    let netns = fs::File::open(format!("/run/netns/{netns}")).expect("the network namespace");
    let entered = move || {
        setns(netns, CloneFlags::CLONE_NEWNET).expect("enter the network namespace");
        work()
    };
    let joined = std::thread::scope(|scope| scope.spawn(entered).join());
    joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[track_caller]
pub(crate) fn ip(args: &[&str]) {
    try_ip(args).unwrap_or_else(|why| panic!("{why}"));
}

pub(crate) fn try_ip(args: &[&str]) -> Result<(), String> {
    let out = Command::new("ip").args(args).output().expect("run ip");
    match out.status.success() {
        true => Ok(()),
        false => Err(format!("ip {args:?}: {}", String::from_utf8_lossy(&out.stderr))),
    }
}

fn remove_cgroup(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroup(&entry.path());
        }
    }
    // What was killed in it may not be quite gone yet.
    for _ in 0..100 {
        match fs::remove_dir(dir) {
            Err(e) if e.kind() == std::io::ErrorKind::ResourceBusy => {
                std::thread::sleep(Duration::from_millis(20));
            }
            _ => return,
        }
    }
}

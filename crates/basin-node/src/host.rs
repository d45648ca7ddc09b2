//! What this server is: facts found at the daemon's start.

use std::fs;
use std::io;
use std::path::Path;

use basin_model::host::{HostCapacity, HostStatus};
use basin_model::{Bytes, Vcpus};
use jiff::Timestamp;

use crate::config::NodeConfig;
use crate::files;

pub fn status(config: &NodeConfig) -> io::Result<HostStatus> {
    Ok(HostStatus {
        host: config.host,
        daemon_version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: boot_id()?,
        started_at: Timestamp::now(),
        kernel: first_line("/proc/sys/kernel/osrelease"),
        cpu_model: cpu_model(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
        capacity: config.slice.unwrap_or_else(whole_server),
        qemu: config.qemu.clone(),
        kvm: config.kvm.clone(),
        hardware: config.hardware.clone(),
        cgroups: cgroups(),
        overlay_mtu: None,
        trunks: Vec::new(),
        conditions: Vec::new(),
        shared_datastores: Default::default(),
    })
}

pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Whether the server has rebooted since `note_boot` was last called on this directory.
pub fn rebooted(state_dir: &Path) -> io::Result<bool> {
    match fs::read_to_string(state_dir.join("boot-id")) {
        Ok(noted) => Ok(noted.trim() != boot_id()?),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// To be called when every VM has been dealt with: a daemon that dies before then
/// leaves the next one to see the reboot as well.
pub fn note_boot(state_dir: &Path) -> io::Result<()> {
    files::write(&state_dir.join("boot-id"), boot_id()?.as_bytes(), 0o600, None)
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}

fn cpu_model(cpuinfo: &str) -> String {
    let name = cpuinfo.lines().find_map(|l| l.strip_prefix("model name"));
    name.map_or("unknown", |l| l.trim_start_matches([' ', '\t', ':'])).to_owned()
}

fn whole_server() -> HostCapacity {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
    HostCapacity {
        cpus: Vcpus(u32::try_from(cpus).unwrap_or(u32::MAX)),
        memory: meminfo("MemTotal:").unwrap_or_default(),
    }
}

/// A line of /proc/meminfo, such as `MemTotal:`.
pub fn meminfo(field: &str) -> Option<Bytes> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(field))?;
    line.trim().strip_suffix(" kB")?.parse().ok().map(Bytes::kib)
}

/// `v2`, `v1`, or none: what confines VMs here.
pub fn cgroups() -> String {
    let has = |path: &str| Path::new(path).exists();
    let text = if has("/sys/fs/cgroup/cgroup.controllers") {
        "v2"
    } else if has("/sys/fs/cgroup/cpu") || has("/sys/fs/cgroup/memory") {
        "v1"
    } else {
        "none"
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_called_what_the_kernel_calls_it() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2.6GHz\n";
        assert_eq!(cpu_model(text), "Some CPU @ 2.6GHz");
        assert_eq!(cpu_model(""), "unknown");
    }

    #[test]
    fn a_reboot_is_seen_until_it_is_dealt_with() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!rebooted(dir.path()).unwrap());
        fs::write(dir.path().join("boot-id"), "another\n").unwrap();
        assert!(rebooted(dir.path()).unwrap());
        note_boot(dir.path()).unwrap();
        assert!(!rebooted(dir.path()).unwrap());
    }
}

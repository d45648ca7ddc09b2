//! Looks at the server for [`judge`](super::judge).

use std::ffi::CStr;
use std::fs;
use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use basin_model::Bytes;
use basin_model::host::{KvmVerdict, QemuInfo};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::statvfs::statvfs;

use super::DoctorConfig;
use crate::host;

/// What was seen. Texts in `Err` are the kernel's words.
pub struct Facts {
    pub root: bool,
    /// Major and minor version.
    pub kernel: Option<(u32, u32)>,
    pub qemu: QemuInfo,
    pub kvm: KvmVerdict,
    pub uefi_firmware: bool,
    pub bios_firmware: bool,
    /// Programs, and whether each is there.
    pub programs: Vec<(&'static str, bool)>,
    pub tun: bool,
    pub cgroups: String,
    pub state_dir: PathBuf,
    /// Free and total space where the state directory is, or is to be.
    pub space: Result<(Bytes, Bytes), String>,
    /// The process of the daemon that has the state directory.
    pub daemon: Option<String>,
    pub io_uring: Result<(), String>,
    pub memfd: Result<(), String>,
    /// `vm.overcommit_memory`.
    pub overcommit: Option<u32>,
    /// Addresses, and whether a program has each already.
    pub ports: Vec<(String, Result<(), String>)>,
    pub clock_synchronised: bool,
    pub memory: Bytes,
    /// The memory limit of the cgroup that this process is in.
    pub memory_limit: Option<Bytes>,
    pub swap: Bytes,
    pub ksm: bool,
}

pub fn gather(config: &DoctorConfig) -> Facts {
    let port = |address: &std::net::SocketAddr| {
        let taken = TcpListener::bind(address).map(drop).map_err(|e| e.to_string());
        (address.to_string(), taken)
    };
    let program = |name| (name, in_path(name));
    Facts {
        root: nix::unistd::geteuid().is_root(),
        kernel: kernel(&text("/proc/sys/kernel/osrelease")),
        qemu: config.qemu.clone(),
        kvm: config.kvm.clone(),
        uefi_firmware: any(&[
            "/usr/share/OVMF/OVMF_CODE_4M.fd",
            "/usr/share/OVMF/OVMF_CODE.fd",
            "/usr/share/ovmf/OVMF.fd",
        ]),
        bios_firmware: any(&["/usr/share/seabios/bios-256k.bin", "/usr/share/qemu/bios-256k.bin"]),
        programs: ["qemu-img", "dnsmasq", "nft"].map(program).into(),
        tun: Path::new("/dev/net/tun").exists(),
        cgroups: host::cgroups(),
        state_dir: config.state_dir.clone(),
        space: space(&config.state_dir),
        daemon: daemon(&config.state_dir),
        io_uring: io_uring(),
        memfd: memfd(),
        overcommit: text("/proc/sys/vm/overcommit_memory").trim().parse().ok(),
        ports: config.listen.iter().map(port).collect(),
        clock_synchronised: clock_synchronised(),
        memory: host::meminfo("MemTotal:").unwrap_or_default(),
        memory_limit: memory_limit(),
        swap: host::meminfo("SwapTotal:").unwrap_or_default(),
        ksm: text("/sys/kernel/mm/ksm/run").trim() == "1",
    }
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn any(paths: &[&str]) -> bool {
    paths.iter().any(|path| Path::new(path).exists())
}

/// Also where a root shell without a login's PATH would not look.
fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).any(|dir| dir.join(program).is_file())
}

fn kernel(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

fn space(dir: &Path) -> Result<(Bytes, Bytes), String> {
    let there = dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let stat = statvfs(there).map_err(|e| e.to_string())?;
    let size = |blocks: u64| Bytes(blocks.saturating_mul(stat.fragment_size()));
    Ok((size(stat.blocks_available()), size(stat.blocks())))
}

/// Whoever holds the lock has written its process id there.
fn daemon(state_dir: &Path) -> Option<String> {
    use nix::fcntl::{Flock, FlockArg};
    let path = state_dir.join("lock");
    let file = fs::File::open(&path).ok()?;
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Err((_, nix::errno::Errno::EAGAIN)) => {
            Some(fs::read_to_string(path).unwrap_or_default().trim().to_owned())
        }
        _ => None,
    }
}

fn io_uring() -> Result<(), String> {
    // struct io_uring_params is 120 bytes; zeroes are valid.
    let mut params = [0u64; 15];
    // SAFETY: `params` is as large as the kernel expects, and outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
    match i32::try_from(fd) {
        Ok(fd) if fd >= 0 => {
            // SAFETY: the descriptor is new and nobody else's.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
            Ok(())
        }
        _ => Err(std::io::Error::last_os_error().to_string()),
    }
}

fn memfd() -> Result<(), String> {
    const NAME: &CStr = c"basin-doctor";
    memfd_create(NAME, MFdFlags::MFD_CLOEXEC).map(drop).map_err(|e| e.to_string())
}

fn clock_synchronised() -> bool {
    // SAFETY: an all-zero timex is valid, and asks for nothing to be changed.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `timex` is valid for the time of the call.
    let state = unsafe { libc::adjtimex(&mut timex) };
    state >= 0 && timex.status & libc::STA_UNSYNC == 0
}

/// The tightest limit on the way from this process's cgroup to the root.
fn memory_limit() -> Option<Bytes> {
    let groups = text("/proc/self/cgroup");
    let mut limits = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            c if c.split(',').any(|c| c == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        for dir in Path::new(path).ancestors() {
            let below = dir.strip_prefix("/").unwrap_or(dir);
            let limit = fs::read_to_string(Path::new(root).join(below).join(file));
            limits.extend(limit.ok().and_then(|text| text.trim().parse::<u64>().ok()));
        }
    }
    limits.into_iter().min().map(Bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_named_in_many_ways() {
        assert_eq!(kernel("6.1.0-25-amd64"), Some((6, 1)));
        assert_eq!(kernel("5.15.0\n"), Some((5, 15)));
        assert_eq!(kernel(""), None);
    }
}

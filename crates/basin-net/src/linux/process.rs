//! dnsmasq processes: found again after a restart of the daemon, never doubled.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use basin_model::NetworkId;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::net::UdpSocket;
use tokio::process::Command;

use super::ports;
use crate::confirm;
use crate::dnsmasq::Layout;
use crate::fabric::NetError;
use crate::state::Process;

const MISSING: NetError = NetError::Missing {
    program: "dnsmasq",
    advice: "networks need it for DHCP and DNS; install it with: apt-get install dnsmasq-base",
};

/// The environment variable that says which bridge a process is bound to.
const BRIDGE: &str = "BASIN_BRIDGE";

fn refused(what: String, why: impl ToString) -> NetError {
    NetError::Refused { what, why: why.to_string() }
}

/// The user dnsmasq becomes.
pub fn user() -> String {
    match nix::unistd::User::from_name("dnsmasq") {
        Ok(Some(user)) => user.name,
        _ => "nobody".into(),
    }
}

/// The process, if it is alive and carries this argument.
fn look(pid: i32, mark: &str) -> Option<Process> {
    let words = |file: &str| -> Option<Vec<String>> {
        let bytes = fs::read(format!("/proc/{pid}/{file}")).ok()?;
        Some(bytes.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect())
    };
    let mut arguments = words("cmdline")?;
    if arguments.last().is_some_and(String::is_empty) {
        arguments.pop();
    }
    let program = arguments.first()?.rsplit('/').next()?;
    if program != "dnsmasq" || !arguments.iter().any(|a| a == mark) {
        return None;
    }
    arguments.remove(0);
    let prefix = format!("{BRIDGE}=");
    let bridge = words("environ")?.iter().find_map(|w| w.strip_prefix(&prefix)?.parse().ok());
    Some(Process { pid, arguments, bridge: bridge.unwrap_or(0) })
}

/// The network's process by its pid file; cheap.
pub fn by_pid_file(layout: &Layout, network: NetworkId) -> Option<Process> {
    let pid = fs::read_to_string(layout.pid_file(network)).ok()?.trim().parse().ok()?;
    look(pid, &layout.mark(network))
}

/// All processes of this daemon's networks, also those whose files were lost.
pub fn scan(layout: &Layout) -> BTreeMap<NetworkId, Process> {
    let mut found: BTreeMap<NetworkId, Vec<Process>> = BTreeMap::new();
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeMap::new() };
    for pid in entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok()) {
        let Ok(cmdline) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        let network = cmdline.split(|b| *b == 0).find_map(|word| {
            let path = Path::new(std::str::from_utf8(word).ok()?.strip_prefix("--pid-file=")?);
            path.parent()?.file_name()?.to_str()?.parse::<NetworkId>().ok()
        });
        if let Some(network) = network
            && let Some(process) = look(pid, &layout.mark(network))
        {
            found.entry(network).or_default().push(process);
        }
    }
    let main = |all: Vec<Process>| {
        // It forks for DNS over TCP; a child's parent is among the found.
        let pids: Vec<i32> = all.iter().map(|p| p.pid).collect();
        all.into_iter().find(|p| parent(p.pid).is_none_or(|parent| !pids.contains(&parent)))
    };
    found.into_iter().filter_map(|(id, all)| Some((id, main(all)?))).collect()
}

fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

/// Starts the network's process; when this returns it answers.
pub async fn start(network: NetworkId, arguments: &[String], bridge: u32) -> Result<(), NetError> {
    let what = format!("starting DHCP and DNS of network {network}");
    // One that was killed a moment ago looks dead before its ports are free.
    let mut tries = 5;
    loop {
        let complaint = match run(arguments, bridge).await {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(MISSING),
            Err(e) => return Err(refused(what, e)),
            Ok(None) => return Ok(()),
            Ok(Some(complaint)) => complaint,
        };
        tries -= 1;
        if tries == 0 || !complaint.contains(ports::IN_USE) {
            return Err(refused(what, ports::explain(&complaint)));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Returns what it complained of, if it did not come up.
async fn run(arguments: &[String], bridge: u32) -> io::Result<Option<String>> {
    let run = Command::new("dnsmasq")
        .args(arguments)
        .env("LC_ALL", "C")
        .env(BRIDGE, bridge.to_string())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output();
    // It goes to the background once its sockets are bound.
    let late = |_| io::Error::other("dnsmasq did not come up in 15 s");
    let output = tokio::time::timeout(Duration::from_secs(15), run).await.map_err(late)??;
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().map(str::trim).find(|l| !l.is_empty()).unwrap_or("dnsmasq failed");
    Ok((!output.status.success()).then(|| line.to_owned()))
}

/// A handle of the process that never means another one.
fn open(pid: i32, mark: &str) -> Option<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the descriptor was just returned to us and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // Looked at after opening, so the handle is of the process that was looked at.
    look(pid, mark).map(|_| fd)
}

fn signal(fd: &OwnedFd, signal: i32) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open, no siginfo is passed, flags are zero.
    let done =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), signal, none, 0) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes it read its files of hosts again; when this returns it has, which shows by
/// its knowing `name`.
pub async fn reload(
    layout: &Layout,
    network: NetworkId,
    pid: i32,
    server: Ipv4Addr,
    name: &str,
) -> Result<(), NetError> {
    let what = || format!("telling DHCP and DNS of network {network} of a change");
    let fd = open(pid, &layout.mark(network)).ok_or_else(|| refused(what(), "it just ended"))?;
    signal(&fd, libc::SIGHUP).map_err(|e| refused(what(), e))?;
    let asked = tokio::time::timeout(Duration::from_secs(15), ask_until_known(server, name)).await;
    match asked {
        Ok(result) => result.map_err(|e| refused(what(), e)),
        Err(_) => Err(refused(what(), format!("it does not answer at {server}"))),
    }
}

async fn ask_until_known(server: Ipv4Addr, name: &str) -> io::Result<()> {
    let socket = UdpSocket::bind((server, 0)).await?;
    socket.connect((server, 53)).await?;
    let mut answer = [0; 512];
    for id in 0.. {
        socket.send(&confirm::query(id, name)).await?;
        // It answers in the order of questions; one that is lost is asked again.
        let patience = Duration::from_millis(200);
        let received = tokio::time::timeout(patience, socket.recv(&mut answer)).await;
        if let Ok(length) = received
            && confirm::known(id, &answer[..length?])
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Ends it and waits until it is gone.
pub async fn stop(layout: &Layout, network: NetworkId, pid: i32) -> Result<(), NetError> {
    let Some(fd) = open(pid, &layout.mark(network)) else { return Ok(()) };
    let ended = tokio::task::spawn_blocking(move || {
        for (number, patience) in [(libc::SIGTERM, 3000u16), (libc::SIGKILL, 5000)] {
            if signal(&fd, number).is_err() {
                return true;
            }
            let mut watched = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
            if poll(&mut watched, PollTimeout::from(patience)).is_ok_and(|n| n > 0) {
                return true;
            }
        }
        false
    });
    match ended.await {
        Ok(true) => Ok(()),
        _ => Err(refused(format!("ending DHCP and DNS of network {network}"), "it does not end")),
    }
}

//! QEMU without Basin: the same command line, its open files replaced by equals.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};
use basin_e2e::{Server, process, raw};

use super::{inherit, qmp};

/// What is started again and again.
pub struct Bare {
    name: String,
    arguments: Vec<String>,
    dir: PathBuf,
    /// Serves the disk, in blockd's place.
    _disk: Child,
    /// Inherited by each QEMU under these numbers: kernel, initrd, console log, tap.
    files: Vec<OwnedFd>,
    /// Where each `fd=` of the command line is a socket to listen at.
    sockets: Vec<(String, PathBuf)>,
}

/// A QEMU that runs.
pub struct Running {
    child: Child,
}

impl Bare {
    /// From the machine that the server runs as process `pid`. The disk and the tap are
    /// there before the first start, as the kernel's and another daemon's business.
    pub fn like(server: &Server, name: &str, pid: u32) -> anyhow::Result<Bare> {
        let dir = server.place.dir.join(name);
        fs::create_dir_all(&dir)?;
        let disk_socket = dir.join("disk.sock");
        let disk = serve_disk(server, &dir.join("disk.raw"), &disk_socket)?;
        let mut bare = Bare {
            name: name.to_owned(),
            arguments: Vec::new(),
            dir,
            _disk: disk,
            files: Vec::new(),
            sockets: Vec::new(),
        };
        for argument in process::command_line(pid).into_iter().skip(1) {
            let argument = bare.translate(server, pid, &argument, &disk_socket)?;
            bare.arguments.push(argument);
        }
        Ok(bare)
    }

    fn translate(
        &mut self,
        server: &Server,
        pid: u32,
        argument: &str,
        disk: &Path,
    ) -> anyhow::Result<String> {
        if let Some(fd) = argument.strip_prefix("/proc/self/fd/") {
            let file = File::open(format!("/proc/{pid}/fd/{fd}"));
            let file = self.keep(file.with_context(|| format!("open {argument}"))?.into());
            return Ok(format!("/proc/self/fd/{file}"));
        }
        if argument.starts_with("socket,id=disk") {
            let (head, rest) = argument.split_once("path=").context("a disk without a path")?;
            let options = rest.split_once(',').map_or("", |(_, options)| options);
            return Ok(format!("{head}path={},{options}", disk.display()));
        }
        let mut words = Vec::new();
        for word in argument.split(',') {
            words.push(match word.split_once('=') {
                Some(("fd", fd)) => self.replace(server, pid, argument, fd)?,
                _ => word.to_owned(),
            });
        }
        Ok(words.join(","))
    }

    fn replace(
        &mut self,
        server: &Server,
        pid: u32,
        argument: &str,
        fd: &str,
    ) -> anyhow::Result<String> {
        // QEMU moves what it is to keep in a set to another number.
        if argument.contains("set=") {
            let log = self.dir.join("console.log");
            let log = OpenOptions::new().create(true).append(true).open(log)?;
            return Ok(format!("fd={}", self.keep(log.into())));
        }
        let what = fs::read_link(format!("/proc/{pid}/fd/{fd}"));
        let what = what.with_context(|| format!("look at {argument}"))?.display().to_string();
        if what == "/dev/net/tun" {
            let name = format!("{}-tap", self.name);
            let tap = server.in_network(|_| raw::tap(&name)).context("make a tap")?;
            let bridge = format!("{}-br", self.name);
            server.sh(&format!(
                "ip link add {bridge} type bridge && ip link set {bridge} up && \
                 ip link set {name} master {bridge} up"
            ));
            return Ok(format!("fd={}", self.keep(tap)));
        }
        if what.starts_with("socket:") {
            let path = self.dir.join(format!("{}.sock", self.sockets.len()));
            let placeholder = format!("@{}@", self.sockets.len());
            self.sockets.push((placeholder.clone(), path));
            return Ok(format!("fd={placeholder}"));
        }
        bail!("{argument}: no equal of {what} is known");
    }

    fn keep(&mut self, file: OwnedFd) -> RawFd {
        let number = file.as_raw_fd();
        self.files.push(file);
        number
    }

    /// From the request to QEMU's word that the guest runs.
    pub fn start(&self) -> anyhow::Result<Running> {
        let mut arguments = self.arguments.clone();
        let mut inherited: Vec<RawFd> = self.files.iter().map(AsRawFd::as_raw_fd).collect();
        let mut listeners = Vec::new();
        for (placeholder, path) in &self.sockets {
            let _ = fs::remove_file(path);
            let listener = UnixListener::bind(path)?;
            for argument in &mut arguments {
                *argument = argument.replace(placeholder, &listener.as_raw_fd().to_string());
            }
            inherited.push(listener.as_raw_fd());
            listeners.push(listener);
        }
        let mut command = Command::new("qemu-system-x86_64");
        command.args(&arguments).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(self.dir.join("qemu.log"))?);
        inherit(&mut command, inherited);
        let running = Running { child: command.spawn().context("run QEMU")? };
        drop(listeners);
        let (_, monitor) = self.sockets.first().context("a command line without a monitor")?;
        qmp::wait_running(monitor).with_context(|| self.words())?;
        Ok(running)
    }

    fn words(&self) -> String {
        fs::read_to_string(self.dir.join("qemu.log")).unwrap_or_default()
    }
}

impl Running {
    /// Pulls the plug, and waits for the end.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ends with the server: it lives in its network namespace.
fn serve_disk(server: &Server, file: &Path, socket: &Path) -> anyhow::Result<Child> {
    File::create(file)?.set_len(64 << 20)?;
    let node = format!("driver=file,node-name=disk,filename={}", file.display());
    let export = format!(
        "vhost-user-blk,id=disk,node-name=disk,writable=on,addr.type=unix,addr.path={}",
        socket.display()
    );
    let child = server
        .place
        .command("qemu-storage-daemon")
        .args(["--blockdev", &node, "--export", &export])
        .stdin(Stdio::null())
        .spawn()
        .context("run qemu-storage-daemon")?;
    basin_e2e::until("qemu-storage-daemon serves", || socket.exists());
    Ok(child)
}

//! The same move by hand: two plain QEMUs, a monitor each, no TLS.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::net::Net;
use crate::{Any, Guest, MAC, Measured};

/// A guest that does not converge is let go after so long.
const PATIENCE: Duration = Duration::from_secs(15);

struct Qemu {
    child: Child,
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Qemu {
    fn start(guest: &Guest, net: &Net, dir: &Path, n: usize) -> Result<Qemu, Any> {
        let socket = dir.join(format!("qmp{n}"));
        let tap = net.tap(n)?;
        nix::fcntl::fcntl(&tap, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))?;
        // The same odd size as the engine's: what loses writes is no yardstick.
        // EVEN=1 shows what that costs (decision 0120).
        let odd = if std::env::var_os("EVEN").is_some() { 0 } else { 64 << 10 };
        let size = guest.memory.get() + odd;
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-cpu", "Nehalem"]);
        command.args(["-machine", "q35,memory-backend=ram", "-accel", "tcg,tb-size=256"]);
        command.args(["-smp", "cpus=1,maxcpus=2", "-serial", "null"]);
        command.arg("-m").arg(format!("size={size}B"));
        command.arg("-object").arg(format!("memory-backend-memfd,id=ram,size={size}B,share=on"));
        command.arg("-kernel").arg(&guest.kernel).arg("-initrd").arg(&guest.initrd);
        command.arg("-append").arg(&guest.command_line);
        command.arg("-netdev").arg(format!("tap,id=n,fd={},vhost=off", tap.as_raw_fd()));
        command.arg("-device").arg(format!("virtio-net-pci,netdev=n,mac={MAC},romfile="));
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.display()));
        if n > 0 {
            command.args(["-incoming", "defer"]);
        }
        let child = command.stdin(Stdio::null()).spawn()?;
        drop(tap);
        let limit = Instant::now() + Duration::from_secs(20);
        let writer = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > limit => return Err(error.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        let reader = BufReader::new(writer.try_clone()?);
        let mut qemu = Qemu { child, reader, writer };
        qemu.line()?;
        qemu.ask("qmp_capabilities", &json!({}))?;
        Ok(qemu)
    }

    fn line(&mut self) -> Result<Value, Any> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value, Any> {
        writeln!(self.writer, "{}", json!({"execute": command, "arguments": arguments}))?;
        loop {
            let answer = self.line()?;
            if !answer["return"].is_null() {
                return Ok(answer["return"].clone());
            }
            if !answer["error"].is_null() {
                return Err(format!("{command}: {}", answer["error"]).into());
            }
        }
    }
}

/// How the hand does it.
#[derive(Debug, Clone, Copy)]
pub enum By {
    /// Not at all.
    Nothing,
    Defaults,
    /// As fast as the link, with this limit.
    Downtime {
        ms: u64,
    },
    /// As fast as the link, and over to post-copy after the first pass.
    Postcopy,
}

pub async fn run(guest: &Guest, net: &Net, by: By) -> Result<Measured, Any> {
    tokio::task::block_in_place(|| {
        let dir = tempfile::tempdir()?;
        let mut source = Qemu::start(guest, net, dir.path(), 0)?;
        let heart = net.listen()?;
        heart.settled()?;
        if let By::Nothing = by {
            let gap = heart.gap_after_beats()?;
            return Ok(Measured { total: Duration::ZERO, gap, forced: false });
        }
        let mut target = Qemu::start(guest, net, dir.path(), 1)?;
        if let By::Postcopy = by {
            let on = json!({"capabilities": [{"capability": "postcopy-ram", "state": true}]});
            source.ask("migrate-set-capabilities", &on)?;
            target.ask("migrate-set-capabilities", &on)?;
        }
        let uri = json!({"uri": "tcp:127.0.0.1:0"});
        target.ask("migrate-incoming", &uri)?;
        let port = target.ask("query-migrate", &json!({}))?["socket-address"][0]["port"].clone();
        let port = port.as_str().ok_or("no port")?.to_owned();
        if !matches!(by, By::Defaults) {
            let ms = if let By::Downtime { ms } = by { ms } else { 1 };
            let limits = json!({"max-bandwidth": 1u64 << 48, "downtime-limit": ms});
            source.ask("migrate-set-parameters", &limits)?;
        }
        let started = Instant::now();
        source.ask("migrate", &json!({"uri": format!("tcp:127.0.0.1:{port}")}))?;
        let mut forced = false;
        loop {
            let status = source.ask("query-migrate", &json!({}))?;
            let passes = status["ram"]["dirty-sync-count"].as_u64().unwrap_or(0);
            match status["status"].as_str() {
                Some("completed") => break,
                Some("active") if matches!(by, By::Postcopy) && passes > 1 && !forced => {
                    source.ask("migrate-start-postcopy", &json!({}))?;
                }
                Some("failed") => return Err(format!("it failed: {status}").into()),
                _ => {}
            }
            if !forced && started.elapsed() > PATIENCE {
                forced = true;
                let force = json!({"downtime-limit": 100_000, "max-bandwidth": 1u64 << 48});
                source.ask("migrate-set-parameters", &force)?;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let total = started.elapsed();
        Ok(Measured { total, gap: heart.gap_after_beats()?, forced })
    })
}

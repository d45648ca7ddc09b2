//! The two servers, as processes.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tempfile::TempDir;

/// What to start.
pub enum Kind {
    Basin(PathBuf),
    Blockd(PathBuf),
    QemuStorageDaemon { aio: String },
}

/// A server of one disk; ends with the value.
pub struct Server {
    child: Child,
    dir: TempDir,
}

impl Server {
    pub fn start(kind: &Kind, file: &Path) -> anyhow::Result<Server> {
        // The file stays locked until the last I/O of the server before has ended.
        for _ in 0..20 {
            if let Ok(server) = Server::try_start(kind, file) {
                return Ok(server);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Server::try_start(kind, file)
    }

    fn try_start(kind: &Kind, file: &Path) -> anyhow::Result<Server> {
        // Short, because a socket's path is.
        let dir = tempfile::Builder::new().prefix("bench").tempdir_in("/tmp")?;
        let socket = dir.path().join("disk.s");
        let mut command = match kind {
            Kind::Basin(program) => {
                let mut c = Command::new(program);
                c.args(["blockd", "--run-dir"]).arg(dir.path());
                c
            }
            Kind::Blockd(program) => {
                let mut c = Command::new(program);
                c.arg(dir.path());
                c
            }
            Kind::QemuStorageDaemon { aio } => {
                let mut c = Command::new("qemu-storage-daemon");
                let path = file.display();
                c.args(["--object", "iothread,id=t"]);
                c.arg("--blockdev").arg(format!(
                    "driver=file,node-name=f,filename={path},cache.direct=on,aio={aio}"
                ));
                c.arg("--export").arg(format!(
                    "vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={},iothread=t,writable=on",
                    socket.display()
                ));
                c
            }
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot run {:?}", command.get_program()))?;
        let mut server = Server { child, dir };
        if !matches!(kind, Kind::QemuStorageDaemon { .. }) {
            let control = server.dir.path().join("control.sock");
            let mut stream = server.wait(|| UnixStream::connect(&control).ok())?;
            let id = "0190a5f2-7c1e-7d3a-9b1f-2f6f0c9e4d11";
            let export = serde_json::json!({
                "volume": id, "generation": 1, "socket": socket, "uid": 0,
                "layers": [{ "path": file, "format": "raw" }],
                "read_only": false, "serial": "bench", "queues": 1,
            });
            let request = serde_json::json!({ "request": "open", "export": export });
            writeln!(stream, "{request}")?;
            let mut reply = String::new();
            BufReader::new(stream).read_line(&mut reply)?;
            if !reply.contains("\"done\"") {
                bail!("blockd refuses the disk: {reply}");
            }
        }
        server.wait(|| socket.exists().then_some(()))?;
        Ok(server)
    }

    fn wait<T>(&mut self, mut look: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended: {status}");
            }
            if Instant::now() > end {
                bail!("the server does not come up");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("disk.s")
    }

    /// Time that all threads of the process have used.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name may contain anything but ends with the last parenthesis.
        let rest = stat.rsplit_once(')').context("a strange stat file")?.1;
        let field = |n: usize| -> anyhow::Result<u64> {
            Ok(rest.split_whitespace().nth(n).context("a short stat file")?.parse()?)
        };
        // SAFETY: takes a constant, returns a number.
        let hz = unsafe { nix::libc::sysconf(nix::libc::_SC_CLK_TCK) } as u64;
        let ticks = field(11)? + field(12)?;
        Ok(Duration::from_micros(ticks * 1_000_000 / hz.max(1)))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

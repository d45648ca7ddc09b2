//! A blockd as a process of its own, and a guest's driver to use its disks.

#![allow(dead_code, reason = "each test binary uses a part")]

pub mod driver;
pub mod fabric;
pub mod load;
pub mod pair;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use basin_blockd::client::{Client, ClientError};
use basin_blockd::control::{ErrorCode, Export, ExportState, Held, Layer};
use basin_model::volume::VolumeFormat;
use basin_model::{Bytes, Generation, VolumeId};
use tempfile::TempDir;

/// Something that must happen does so long before this.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for something that is bound to happen.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A daemon with a directory of its own; both go with it.
pub struct Daemon {
    pub dir: TempDir,
    workers: Option<usize>,
    child: Option<Child>,
    runtime: tokio::runtime::Runtime,
}

/// The example that runs blockd alone, built along with the tests.
fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().unwrap().parent().unwrap();
    profile.join("examples/blockd")
}

impl Daemon {
    pub fn start() -> Daemon {
        Daemon::start_with(None)
    }

    /// With so many workers.
    pub fn start_with(workers: Option<usize>) -> Daemon {
        // Short, because a socket's path is.
        let dir = tempfile::Builder::new().prefix("bd").tempdir_in("/tmp").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut daemon = Daemon { dir, workers, child: None, runtime };
        daemon.launch();
        daemon
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts the process, which must not run.
    pub fn launch(&mut self) {
        assert!(self.child.is_none());
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        let child = Command::new(program())
            .arg(self.run_dir())
            .args(self.workers.map(|n| n.to_string()))
            .stderr(log)
            .stdout(Stdio::null())
            .spawn()
            .expect("the example blockd: cargo test builds it");
        self.child = Some(child);
        until("blockd to answer", || {
            let Some(child) = &mut self.child else { return None };
            assert!(child.try_wait().unwrap().is_none(), "blockd died:\n{}", self.log());
            self.ask(async |c| c.hello().await).ok()
        });
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// The names of its threads.
    pub fn threads(&self) -> Vec<String> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let name = |task: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(task.ok()?.path().join("comm")).ok()
        };
        tasks.filter_map(name).map(|name| name.trim_end().to_owned()).collect()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// As a power cut would, for the process.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Waits for an end that was asked for.
    pub fn wait_for_end(&mut self) -> bool {
        let mut child = self.child.take().unwrap();
        until("blockd to end", || child.try_wait().unwrap()).success()
    }

    pub fn ask<T>(
        &self,
        ask: impl AsyncFnOnce(&mut Client) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let dir = self.run_dir();
        self.runtime.block_on(async { ask(&mut Client::connect(&dir).await?).await })
    }

    /// A raw disk of `size` bytes, and its export.
    pub fn raw(&self, name: &str, size: u64) -> Export {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(size).unwrap();
        self.export(name, vec![Layer { path, format: VolumeFormat::Raw }])
    }

    pub fn export(&self, name: &str, layers: Vec<Layer>) -> Export {
        Export {
            volume: volume(name),
            generation: Generation(1),
            socket: self.run_dir().join(format!("{name}.s")),
            uid: 0,
            layers,
            read_only: false,
            serial: format!("serial-{name}"),
            queues: 2,
            held: Held::Always,
        }
    }

    pub fn open(&self, export: &Export) {
        self.ask(async |c| c.open(export).await).unwrap();
    }

    pub fn open_error(&self, export: &Export) -> (ErrorCode, String) {
        refusal(self.ask(async |c| c.open(export).await))
    }

    pub fn close(&self, export: &Export) {
        self.ask(async |c| c.close(export.volume, export.generation).await).unwrap();
    }

    pub fn resize(&self, export: &Export, size: u64) -> Result<(), ClientError> {
        self.ask(async |c| c.resize(export.volume, Bytes(size)).await)
    }

    pub fn state(&self, export: &Export) -> Option<ExportState> {
        let all = self.ask(async |c| c.list().await).unwrap();
        all.into_iter().find(|s| s.export.volume == export.volume)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
        if std::thread::panicking() {
            eprintln!("blockd's log:\n{}", self.log());
        }
    }
}

/// What was refused and why.
pub fn refusal<T: std::fmt::Debug>(outcome: Result<T, ClientError>) -> (ErrorCode, String) {
    match outcome {
        Err(ClientError::Refused { code, message }) => (code, message),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// An id made of a name.
pub fn volume(name: &str) -> VolumeId {
    let mut bytes = [0; 16];
    let n = name.len().min(16);
    bytes[..n].copy_from_slice(&name.as_bytes()[..n]);
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    hex.parse().unwrap()
}

/// Runs a program that must succeed.
pub fn sh(program: &str, args: &[&str]) -> String {
    let out =
        Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// `len` bytes that tell `seed` and their place.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = |x: &mut u64| {
        *x ^= *x << 13;
        *x ^= *x >> 7;
        *x ^= *x << 17;
        x.to_le_bytes()
    };
    (0..len.div_ceil(8)).flat_map(|_| step(&mut x)).take(len).collect()
}

pub fn path_str(path: &Path) -> &str {
    path.to_str().unwrap()
}

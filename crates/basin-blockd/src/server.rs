//! The process: one a run directory, a control socket, the disks.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::control::{ErrorCode, Reply, Request};
use crate::io::DiskError;
use crate::registry::Registry;
use crate::worker::Pool;

/// How `basin blockd` is to run.
#[derive(Debug, Clone)]
pub struct BlockdConfig {
    /// Where `control.sock`, `exports/` and the lock are; `/run/basin/blockd`.
    pub run_dir: PathBuf,
    /// Threads of the data path; `None`: as many as there are CPUs.
    pub workers: Option<usize>,
    /// How long a worker may look for work before it sleeps; zero: not at all.
    pub poll: Duration,
}

impl BlockdConfig {
    pub fn new(run_dir: impl Into<PathBuf>) -> BlockdConfig {
        BlockdConfig { run_dir: run_dir.into(), workers: None, poll: Duration::from_micros(32) }
    }
}

/// A request fits easily; more is no request.
const MAX_LINE: u64 = 1 << 20;
const MAX_CLIENTS: usize = 32;
const STACK: usize = 256 << 10;

/// Serves until it is asked to quit.
pub fn run(config: BlockdConfig) -> anyhow::Result<()> {
    // Nothing this process makes is anyone else's.
    // SAFETY: the call takes and changes only the process' mask.
    unsafe { libc::umask(0o077) };
    raise_file_limit();
    fs::create_dir_all(&config.run_dir)
        .with_context(|| format!("cannot make {}", config.run_dir.display()))?;
    // The users of the VMs pass through to their sockets, and see nothing else.
    fs::set_permissions(&config.run_dir, fs::Permissions::from_mode(0o711))
        .with_context(|| format!("cannot set the mode of {}", config.run_dir.display()))?;
    let _lock = lock(&config.run_dir)?;
    let workers = match config.workers {
        Some(n) => n,
        None => thread::available_parallelism().map_or(1, usize::from),
    };
    let pool = Pool::start(workers, config.poll).context("cannot start the workers")?;
    let registry = Registry::restore(&config.run_dir.join("exports"), Arc::new(pool))
        .context("cannot read the exports")?;
    let server = Arc::new(Server {
        registry,
        quitting: AtomicBool::new(false),
        clients: AtomicUsize::new(0),
        supervisor: thread::current(),
    });
    let listener = listen(&config.run_dir.join("control.sock"))?;
    tracing::info!(run_dir = %config.run_dir.display(), workers, "blockd serves");
    let accepting = Arc::clone(&server);
    thread::Builder::new()
        .name("control".into())
        .stack_size(STACK)
        .spawn(move || accepting.accept(&listener))
        .context("cannot start a thread")?;
    server.supervise();
    server.registry.shut_down();
    let _ = fs::remove_file(config.run_dir.join("control.sock"));
    tracing::info!("blockd ends");
    Ok(())
}

/// Each disk needs a few descriptors for each queue.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn lock(run_dir: &Path) -> anyhow::Result<File> {
    let path = run_dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!("another blockd serves {}: stop it first", run_dir.display())
        }
        Err(TryLockError::Error(e)) => {
            Err(e).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let context = || format!("cannot listen on {}", path.display());
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e).with_context(context),
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(context)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).with_context(context)?;
    Ok(listener)
}

struct Server {
    registry: Registry,
    quitting: AtomicBool,
    clients: AtomicUsize,
    /// Sleeps in [`Server::supervise`].
    supervisor: thread::Thread,
}

impl Server {
    /// Tries again what failed; returns when it is time to end.
    fn supervise(&self) {
        let mut failing = true;
        loop {
            if failing {
                failing = self.registry.retry();
            }
            if self.quitting.load(Ordering::Acquire) && !self.registry.in_use() {
                return;
            }
            let quick = failing || self.quitting.load(Ordering::Acquire);
            thread::park_timeout(Duration::from_millis(if quick { 200 } else { 60_000 }));
        }
    }

    fn accept(self: Arc<Server>, listener: &UnixListener) {
        for stream in listener.incoming() {
            let stream = match stream {
                Ok(stream) => stream,
                Err(e) => {
                    tracing::warn!(error = %e, "control socket");
                    thread::sleep(Duration::from_millis(100));
                    continue;
                }
            };
            if self.clients.fetch_add(1, Ordering::AcqRel) >= MAX_CLIENTS {
                self.clients.fetch_sub(1, Ordering::AcqRel);
                tracing::warn!("too many clients of the control socket");
                continue;
            }
            let server = Arc::clone(&self);
            let spawned =
                thread::Builder::new().name("client".into()).stack_size(STACK).spawn(move || {
                    if let Err(e) = server.converse(&stream) {
                        tracing::debug!(error = %e, "client gone");
                    }
                    server.clients.fetch_sub(1, Ordering::AcqRel);
                });
            if let Err(e) = spawned {
                self.clients.fetch_sub(1, Ordering::AcqRel);
                tracing::warn!(error = %e, "cannot serve a client");
            }
        }
    }

    fn converse(&self, mut stream: &UnixStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?);
        let mut line = Vec::new();
        loop {
            line.clear();
            lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)?;
            if line.last() != Some(&b'\n') {
                return Ok(());
            }
            let reply = match serde_json::from_slice(&line) {
                Ok(request) => self.answer(request),
                Err(e) => Reply::Error {
                    code: ErrorCode::Invalid,
                    message: format!("this is not a request: {e}"),
                },
            };
            let mut bytes = serde_json::to_vec(&reply)?;
            bytes.push(b'\n');
            stream.write_all(&bytes)?;
        }
    }

    fn answer(&self, request: Request) -> Reply {
        let ending = || Reply::Error {
            code: ErrorCode::Invalid,
            message: "blockd is about to end: ask its successor".into(),
        };
        let done = |outcome: Result<(), DiskError>| match outcome {
            Ok(()) => Reply::Done,
            Err(DiskError { code, message }) => Reply::Error { code, message },
        };
        match request {
            Request::Hello => Reply::Hello {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                postcopy: crate::vhost::arriving::possible(),
            },
            Request::Open { .. } if self.quitting.load(Ordering::Acquire) => ending(),
            Request::Open { export } => done(self.registry.open(export)),
            Request::Close { volume, generation } => done(self.registry.close(volume, generation)),
            Request::List => Reply::Exports { exports: self.registry.list() },
            Request::Resize { volume, size } => done(self.registry.resize(volume, size)),
            Request::Hold { volume, generation, held } => {
                done(self.registry.hold(volume, generation, held))
            }
            Request::AwaitRelease { volume, generation, mirrored, limit_ms } => {
                let limit = Duration::from_millis(limit_ms);
                done(self.registry.await_release(volume, generation, mirrored, limit))
            }
            Request::Quit => {
                self.quitting.store(true, Ordering::Release);
                self.supervisor.unpark();
                Reply::Done
            }
            Request::Fabric { fabric } => done(self.registry.service.set(fabric.as_ref())),
            Request::Grant { .. } if self.quitting.load(Ordering::Acquire) => ending(),
            Request::Grant { grant } => done(self.registry.grant(&grant)),
            Request::Revoke { volume, generation } => {
                done(self.registry.service.grants.revoke(volume, generation))
            }
            Request::Grants => {
                let service = &self.registry.service;
                Reply::Grants { grants: service.grants.list(service.address()) }
            }
            Request::Mirror { mirror } => done(self.registry.mirror(&mirror)),
            Request::MirrorLimit { volume, limit } => {
                done(self.registry.mirror_limit(volume, limit))
            }
            Request::StopMirror { volume, generation } => {
                done(self.registry.stop_mirror(volume, generation))
            }
        }
    }
}

//! Keeps `basin blockd` running, and talks to it.
//!
//! It is a process of its own session, so it survives the daemon, and the next
//! daemon finds it by its socket. When it dies it is started again at once: guests
//! wait for their disks meanwhile.

mod disks;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use basin_blockd::client::{Client, ClientError, Hello};
use basin_blockd::control::{Export, Fabric};
use basin_model::VolumeId;
use basin_model::task::Problem;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{BlockdLauncher, NodeConfig};
use crate::disks::DiskError;
use crate::problem::problem;

/// How long a new blockd has until it answers, and a request until blockd is back.
const COMES_UP_WITHIN: Duration = Duration::from_secs(10);

/// How long it has to answer. Closing a disk waits for what is in flight.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);

/// One that dies sooner than this is started with growing pauses.
const LIVES_AT_LEAST: Duration = Duration::from_secs(5);

/// Killed last when memory runs out: all disks of the server hang on it.
const OOM_SCORE_ADJ: &str = "-900";

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// See the module. Clones are the same.
#[derive(Clone)]
pub struct Supervisor(Arc<Inner>);

struct Inner {
    launcher: BlockdLauncher,
    dir: PathBuf,
    log: PathBuf,
    /// Taken out for the time of a request: one that is cut off leaves none behind.
    connection: tokio::sync::Mutex<Option<Client>>,
    state: Mutex<State>,
    problem: watch::Sender<Option<Problem>>,
}

#[derive(Default)]
struct State {
    wanted: BTreeMap<VolumeId, Export>,
    fabric: Option<Fabric>,
    running: Option<Hello>,
}

impl Supervisor {
    /// Adopts the blockd that runs, or starts one, and watches it until `stop`.
    pub async fn start(
        launcher: BlockdLauncher,
        config: &NodeConfig,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Supervisor {
        let dir = config.run_dir.join("blockd");
        let log = config.state_dir.join("blockd.log");
        Supervisor::start_in(launcher, dir, log, tasks, stop).await
    }

    async fn start_in(
        launcher: BlockdLauncher,
        dir: PathBuf,
        log: PathBuf,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Supervisor {
        let supervisor = Supervisor(Arc::new(Inner {
            launcher,
            dir,
            log,
            connection: tokio::sync::Mutex::default(),
            state: Mutex::default(),
            problem: watch::channel(None).0,
        }));
        let first = supervisor.ensure().await;
        let (watching, stop) = (supervisor.clone(), stop.clone());
        tasks.spawn(async move {
            stop.run_until_cancelled(watching.watch(first)).await;
        });
        supervisor
    }

    pub fn problem(&self) -> Option<Problem> {
        self.0.problem.borrow().clone()
    }

    pub fn changes(&self) -> watch::Receiver<Option<Problem>> {
        self.0.problem.subscribe()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn watch(&self, mut running: Result<Running, String>) {
        let mut pause = Duration::ZERO;
        loop {
            let began = Instant::now();
            match running {
                Ok(running) => {
                    self.report(&running);
                    let set_up = async {
                        self.speak_again().await;
                        self.open_missing().await;
                        self.replace_if_old_and_idle().await;
                        std::future::pending::<()>().await;
                    };
                    // It may die meanwhile, and nobody else starts it again.
                    tokio::select! {
                        () = running.ended() => {}
                        () = set_up => {}
                    }
                    tracing::error!(pid = running.hello.pid, "blockd has ended");
                }
                Err(why) => {
                    tracing::error!(why, "blockd does not run");
                    let advice = "read blockd.log in the state directory; the daemon keeps trying";
                    let problem = problem("blockd-down", why, advice);
                    self.0.problem.send_replace(Some(problem));
                }
            }
            self.state().running = None;
            *self.0.connection.lock().await = None;
            pause = if began.elapsed() >= LIVES_AT_LEAST {
                Duration::ZERO
            } else {
                (pause * 2).clamp(Duration::from_millis(200), Duration::from_secs(30))
            };
            sleep(pause).await;
            running = self.ensure().await;
        }
    }

    fn report(&self, running: &Running) {
        let Hello { version, pid, .. } = &running.hello;
        tracing::info!(pid, version, adopted = running.child.is_none(), "blockd runs");
        let old = (version != VERSION).then(|| {
            let detail = format!("blockd {version} still serves disks; the daemon is {VERSION}");
            let advice = "nothing: it is replaced when no VM uses it any more";
            problem("blockd-outdated", detail, advice)
        });
        self.0.problem.send_if_modified(|now| std::mem::replace(now, old.clone()) != old);
    }

    /// The one that runs, else a new one.
    async fn ensure(&self) -> Result<Running, String> {
        if let Some(hello) = self.greet().await {
            return Running::new(hello, None);
        }
        let program = self.0.launcher.program.display();
        let mut child = self.spawn().map_err(|e| format!("cannot start {program}: {e}"))?;
        let until = Instant::now() + COMES_UP_WITHIN;
        loop {
            if let Some(hello) = self.greet().await {
                return Running::new(hello, Some(child));
            }
            if let Ok(Some(status)) = child.try_wait() {
                return Err(format!("{program} ended right after its start ({status})"));
            }
            if Instant::now() >= until {
                return Err(format!("{program} was started and does not answer"));
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn greet(&self) -> Option<Hello> {
        let mut client = Client::connect(&self.0.dir).await.ok()?;
        let hello = timeout(COMES_UP_WITHIN, client.hello()).await.ok()?.ok()?;
        self.state().running = Some(hello.clone());
        *self.0.connection.lock().await = Some(client);
        Some(hello)
    }

    fn spawn(&self) -> std::io::Result<Child> {
        let Inner { launcher, dir, log, .. } = &*self.0;
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(log)?;
        let mut command = Command::new(&launcher.program);
        command.args(&launcher.args).arg("--run-dir").arg(dir).current_dir("/");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // SAFETY: setsid is async-signal-safe, and allocates nothing.
        unsafe {
            command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into));
        }
        let child = command.spawn()?;
        if let Some(pid) = child.id()
            && let Err(error) = std::fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE_ADJ)
        {
            tracing::warn!(%error, "blockd is not shielded from the kernel's out-of-memory killer");
        }
        Ok(child)
    }

    /// blockd restores what it served by itself; this is for what it could not.
    async fn open_missing(&self) {
        let Ok(exports) = self.ask(|client| Box::pin(client.list())).await else { return };
        let served: Vec<VolumeId> = exports.iter().map(|e| e.export.volume).collect();
        let wanted: Vec<Export> = self.state().wanted.values().cloned().collect();
        for export in wanted.into_iter().filter(|e| !served.contains(&e.volume)) {
            let volume = export.volume;
            if let Err(error) = self.ask_open(&export).await {
                tracing::error!(%volume, %error, "cannot serve a disk again");
            }
        }
    }

    /// A blockd that started anew knows no certificates.
    async fn speak_again(&self) {
        let fabric = self.state().fabric.clone();
        if fabric.is_some()
            && let Err(error) = self.ask_fabric(fabric).await
        {
            tracing::error!(%error, "blockd cannot speak to other servers");
        }
    }

    async fn ask_fabric(&self, fabric: Option<Fabric>) -> Result<(), DiskError> {
        let fabric = Arc::new(fabric);
        self.ask(|client| {
            let fabric = fabric.clone();
            Box::pin(async move { client.fabric(fabric.as_ref().as_ref()).await })
        })
        .await
    }

    async fn ask_open(&self, export: &Export) -> Result<(), DiskError> {
        let export = Arc::new(export.clone());
        self.ask(|client| {
            let export = export.clone();
            Box::pin(async move { client.open(&export).await })
        })
        .await
    }

    async fn replace_if_old_and_idle(&self) {
        let old = self.state().running.as_ref().is_some_and(|hello| hello.version != VERSION);
        let idle = self.state().wanted.is_empty();
        if old
            && idle
            && let Err(error) = self.ask(|client| Box::pin(client.quit())).await
        {
            tracing::warn!(%error, "cannot replace an old blockd");
        }
    }

    /// Asks; while blockd is away, waits for it to come back.
    async fn ask<T>(
        &self,
        request: impl for<'a> Fn(&'a mut Client) -> Asked<'a, T>,
    ) -> Result<T, DiskError> {
        let until = Instant::now() + COMES_UP_WITHIN;
        loop {
            let mut slot = self.0.connection.lock().await;
            let error = match self.try_once(slot.take(), &request).await {
                Ok((client, answer)) => {
                    *slot = Some(client);
                    return answer;
                }
                Err(error) => error,
            };
            drop(slot);
            if Instant::now() >= until {
                return Err(DiskError { code: None, message: error });
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// As [`Supervisor::ask`], for what may take its time: on a connection of its own,
    /// so that others do not wait for it.
    async fn ask_beside<T>(
        &self,
        request: impl for<'a> Fn(&'a mut Client) -> Asked<'a, T>,
    ) -> Result<T, DiskError> {
        let until = Instant::now() + COMES_UP_WITHIN;
        loop {
            match self.try_once(None, &request).await {
                Ok((_, answer)) => return answer,
                Err(message) if Instant::now() >= until => {
                    return Err(DiskError { code: None, message });
                }
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// An error means that blockd could not be asked. What it was asked before that
    /// is idempotent.
    async fn try_once<T>(
        &self,
        client: Option<Client>,
        request: &impl for<'a> Fn(&'a mut Client) -> Asked<'a, T>,
    ) -> Result<(Client, Result<T, DiskError>), String> {
        let mut client = match client {
            Some(client) => client,
            None => Client::connect(&self.0.dir).await.map_err(|e| e.to_string())?,
        };
        match timeout(ANSWERS_WITHIN, request(&mut client)).await {
            Ok(Ok(answer)) => Ok((client, Ok(answer))),
            Ok(Err(error @ ClientError::Refused { .. })) => {
                let refusal = DiskError { code: error.code(), message: error.to_string() };
                Ok((client, Err(refusal)))
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("blockd did not answer in time".to_owned()),
        }
    }
}

type Asked<'a, T> = futures::future::BoxFuture<'a, Result<T, ClientError>>;

/// A blockd that answered.
struct Running {
    hello: Hello,
    /// Kept, so that it is reaped; none: an earlier daemon's.
    child: Option<Child>,
    pidfd: AsyncFd<OwnedFd>,
}

impl Running {
    fn new(hello: Hello, child: Option<Child>) -> Result<Running, String> {
        let pid = i32::try_from(hello.pid).map_err(|e| e.to_string())?;
        // SAFETY: pidfd_open takes two integers and touches no memory.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0);
        let fd = fd.ok_or_else(|| format!("process {pid}: {}", std::io::Error::last_os_error()))?;
        // SAFETY: the descriptor is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: the AsyncFd owns the descriptor and closes it itself.
        let pidfd = unsafe { AsyncFd::register(fd) }.map_err(|e| e.to_string())?;
        Ok(Running { hello, child, pidfd })
    }

    /// Returns when the process is dead, be it a zombie.
    async fn ended(&self) {
        if self.pidfd.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

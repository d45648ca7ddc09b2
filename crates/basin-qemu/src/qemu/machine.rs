//! A running QEMU.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use basin_model::vm::QemuProcess;
use basin_model::{Bytes, VmId};
use qapi::qmp::{self, Event, QmpCommand};
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::{broadcast, watch};
use tokio_util::task::AbortOnDropHandle;

use super::cgroup::MachineCgroup;
use super::events::{self, Translator};
use super::migrate::creds;
use super::paths::Paths;
use super::qmp::{Qmp, QmpError};
use super::{agent, files, process};
use crate::console::{ConsoleLock, Guarded};
use crate::engine::{
    BalloonStats, ConsoleStream, EngineError, GuestInfo, Machine, MachineEvent, MachineState,
};
use crate::hardware::Hardware;

/// How often logs are looked at.
const TRIM_EVERY: Duration = Duration::from_secs(20);
/// How long a killed process may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// What the machine's handle and its tasks share.
pub struct Shared {
    pub vm: VmId,
    pub paths: Paths,
    pub cgroup: MachineCgroup,
    pub process: QemuProcess,
    pub pidfd: AsyncFd<OwnedFd>,
    /// Where this process's part of `qemu.log` begins.
    pub log_start: u64,
    pub hardware: Hardware,
    /// The guest's memory as it was asked for.
    pub memory: Bytes,
    /// The user the process runs as.
    pub uid: u32,
    /// Kept in memory while the machine runs.
    pub _images: Vec<Arc<OwnedFd>>,
    pub limit: Duration,
    pub hub: Arc<Hub>,
    /// Held by who changes where the guest is: a cancel never meets a switch.
    pub switch: tokio::sync::Mutex<()>,
    /// How the process ended, once it has and its remains are removed.
    pub gone: watch::Sender<Option<String>>,
}

/// Where a machine's events meet.
pub struct Hub {
    sender: broadcast::Sender<MachineEvent>,
    translator: Mutex<Translator>,
    /// The key of a migration, of no use after it.
    key: PathBuf,
}

impl Hub {
    pub fn new(key: PathBuf) -> Arc<Hub> {
        Arc::new(Hub { sender: broadcast::channel(64).0, translator: Mutex::default(), key })
    }

    pub fn translator(&self) -> MutexGuard<'_, Translator> {
        self.translator.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn qemu_said(&self, event: &Event) {
        let translated = self.translator().translate(event);
        if let Some(event) = translated {
            if matches!(&event, MachineEvent::Migration(phase) if phase.is_over()) {
                creds::remove(&self.key);
            }
            // Nobody listening is fine.
            let _ = self.sender.send(event);
        }
    }
}

/// A handle on a running QEMU. Dropping it leaves QEMU alone.
pub struct QemuMachine {
    pub(super) shared: Arc<Shared>,
    qmp: Arc<tokio::sync::Mutex<Arc<Qmp>>>,
    console: ConsoleLock,
    _watcher: AbortOnDropHandle<()>,
}

impl QemuMachine {
    /// Begins to watch. `qmp` tells its events to the hub in `shared`.
    pub fn new(shared: Arc<Shared>, qmp: Qmp) -> QemuMachine {
        let qmp = Arc::new(tokio::sync::Mutex::new(Arc::new(qmp)));
        let watcher = tokio::spawn(watch_process(shared.clone(), qmp.clone()));
        QemuMachine {
            shared,
            qmp,
            console: ConsoleLock::default(),
            _watcher: AbortOnDropHandle::new(watcher),
        }
    }

    /// Sends SIGKILL and does not wait.
    pub fn kill_now(&self) {
        if let Err(error) = process::kill(self.shared.pidfd.get_ref()) {
            tracing::warn!(vm = %self.shared.vm, %error, "cannot kill QEMU");
        }
    }

    fn is_gone(&self) -> bool {
        self.shared.gone.borrow().is_some()
    }

    /// The monitor; connected anew where the last connection broke.
    async fn monitor(&self) -> Result<Arc<Qmp>, QmpError> {
        let mut slot = self.qmp.lock().await;
        if slot.is_closed() {
            let hub = self.shared.hub.clone();
            let on_event = move |event: Event| hub.qemu_said(&event);
            let socket = self.shared.paths.qmp();
            *slot = Arc::new(Qmp::connect(&socket, self.shared.limit, on_event).await?);
        }
        Ok(slot.clone())
    }

    pub(super) async fn ask<C: QmpCommand>(
        &self,
        what: &'static str,
        command: C,
    ) -> Result<C::Ok, EngineError> {
        if self.is_gone() {
            return Err(EngineError::Gone);
        }
        let asking = async {
            match self.monitor().await {
                Ok(qmp) => qmp.execute(command, self.shared.limit).await,
                Err(error) => Err(error),
            }
        };
        match asking.await {
            Ok(result) => Ok(result),
            Err(_) if self.died().await => Err(EngineError::Gone),
            Err(error) => Err(EngineError::Refused { what, why: error.to_string() }),
        }
    }

    /// Whether the process has ended; waits a moment for its remains to be removed.
    async fn died(&self) -> bool {
        if self.is_gone() {
            return true;
        }
        if process::is_alive(self.shared.process.pid) {
            return false;
        }
        let mut gone = self.shared.gone.subscribe();
        let _ = tokio::time::timeout(KILL_LIMIT, gone.wait_for(Option::is_some)).await;
        true
    }

    /// Refuses what would touch the vCPUs of a guest that is on its way.
    async fn settled(&self, what: &'static str) -> Result<MachineState, EngineError> {
        let why = match self.state().await? {
            MachineState::Incoming => "its guest is not there yet",
            MachineState::Switching => "its guest is on the way to another server",
            MachineState::Migrated => "its guest has gone to another server",
            state => return Ok(state),
        };
        Err(EngineError::Refused { what, why: why.to_owned() })
    }

    /// Starts the vCPUs of a machine that was stopped by its guest's end, when its reset
    /// has happened. The monitor answers before it has.
    async fn revive(
        &self,
        mut events: broadcast::Receiver<MachineEvent>,
    ) -> Result<(), EngineError> {
        let happened = async {
            loop {
                match events.recv().await {
                    Ok(MachineEvent::Reset { .. }) => break,
                    Err(broadcast::error::RecvError::Closed) => break,
                    _ => {}
                }
            }
        };
        if tokio::time::timeout(self.shared.limit, happened).await.is_err() {
            let why = "QEMU accepted it and nothing happened".to_owned();
            return Err(EngineError::Refused { what: "reset", why });
        }
        self.ask("start after its reset", qmp::cont {}).await.map(drop)
    }
}

#[async_trait]
impl Machine for QemuMachine {
    fn process(&self) -> QemuProcess {
        self.shared.process.clone()
    }

    async fn state(&self) -> Result<MachineState, EngineError> {
        match self.ask("tell its state", qmp::query_status {}).await {
            Ok(info) => Ok(events::state(info.status)),
            Err(EngineError::Gone) => Ok(MachineState::Gone),
            Err(error) => Err(error),
        }
    }

    fn events(&self) -> broadcast::Receiver<MachineEvent> {
        self.shared.hub.sender.subscribe()
    }

    async fn pause(&self) -> Result<(), EngineError> {
        let running = self.settled("pause").await? == MachineState::Running;
        let hub = &self.shared.hub;
        // Its STOP comes before the answer.
        hub.translator().pause_asked = running;
        let paused = self.ask("pause", qmp::stop {}).await.map(drop);
        hub.translator().pause_asked = false;
        paused
    }

    async fn resume(&self) -> Result<(), EngineError> {
        self.settled("resume").await?;
        self.ask("resume", qmp::cont {}).await.map(drop)
    }

    async fn reset(&self) -> Result<(), EngineError> {
        let state = self.settled("reset").await?;
        let events = self.events();
        self.ask("reset", qmp::system_reset {}).await?;
        match state {
            MachineState::Crashed | MachineState::Shutdown => self.revive(events).await,
            _ => Ok(()),
        }
    }

    async fn press_power_button(&self) -> Result<(), EngineError> {
        self.ask("press its power button", qmp::system_powerdown {}).await.map(drop)
    }

    async fn kill(&self) -> Result<(), EngineError> {
        let mut gone = self.shared.gone.subscribe();
        if gone.borrow().is_none() {
            process::kill(self.shared.pidfd.get_ref())
                .map_err(|source| EngineError::Io { what: "kill QEMU".to_owned(), source })?;
        }
        match tokio::time::timeout(KILL_LIMIT, gone.wait_for(Option::is_some)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(EngineError::Refused {
                what: "end",
                why: format!("its process {} does not die", self.shared.process.pid),
            }),
        }
    }

    async fn balloon(&self) -> Result<BalloonStats, EngineError> {
        let actual = self.ask("tell its memory", qmp::query_balloon {}).await?.actual;
        // Without what emulation adds for its own sake.
        let extra = self.shared.hardware.ram.saturating_sub(self.shared.memory);
        let actual = Bytes(u64::try_from(actual).unwrap_or(0)).saturating_sub(extra);
        let path = "/machine/peripheral/balloon0".to_owned();
        let stats = qmp::qom_get { path, property: "guest-stats".to_owned() };
        let stats = self.ask("tell its memory", stats).await?;
        // Never reported: all ones.
        let stat = |name: &str| {
            stats["stats"][name].as_u64().filter(|value| *value != u64::MAX).map(Bytes)
        };
        Ok(BalloonStats {
            actual,
            free: stat("stat-free-memory"),
            available: stat("stat-available-memory"),
            total: stat("stat-total-memory"),
        })
    }

    async fn set_balloon(&self, target: Bytes) -> Result<(), EngineError> {
        let extra = self.shared.hardware.ram.saturating_sub(self.shared.memory);
        let value = i64::try_from((target + extra).get()).unwrap_or(i64::MAX);
        self.ask("set its memory", qmp::balloon { value }).await.map(drop)
    }

    async fn guest_info(&self) -> Option<GuestInfo> {
        let chardevs = self.ask("tell its agent", qmp::query_chardev {}).await.ok()?;
        // Nobody has the port open in the guest: do not wait for an answer.
        chardevs.iter().find(|c| c.label == "agent" && c.frontend_open)?;
        // Any number the last conversation did not use.
        let nonce = jiff::Timestamp::now().subsec_nanosecond();
        agent::ask(&self.shared.paths.agent(), nonce).await
    }

    fn cpu_time(&self) -> Option<Duration> {
        if self.is_gone() {
            return None;
        }
        process::stat(self.shared.process.pid).map(|stat| stat.cpu_time)
    }

    fn resident(&self) -> Option<Bytes> {
        if self.is_gone() { None } else { process::resident(self.shared.process.pid) }
    }

    async fn open_console(&self) -> Result<ConsoleStream, EngineError> {
        let what = "open its console";
        let refused = |why: String| EngineError::Refused { what, why };
        if self.is_gone() {
            return Err(EngineError::Gone);
        }
        let guard = self.console.take().ok_or_else(|| refused("it is open already".to_owned()))?;
        let connecting = UnixStream::connect(self.shared.paths.serial());
        match tokio::time::timeout(self.shared.limit, connecting).await {
            Ok(Ok(stream)) => Ok(Box::new(Guarded { stream, _guard: guard })),
            Ok(Err(error)) => Err(refused(error.to_string())),
            Err(_) => Err(refused("QEMU does not answer".to_owned())),
        }
    }

    fn console_log(&self) -> PathBuf {
        self.shared.paths.console_log()
    }
}

/// Waits for the process's end, removes its remains, and tells. Keeps its logs short.
async fn watch_process(shared: Arc<Shared>, qmp: Arc<tokio::sync::Mutex<Arc<Qmp>>>) {
    let mut trim = tokio::time::interval(TRIM_EVERY);
    trim.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            ended = shared.pidfd.readable() => match ended {
                Ok(_) => break,
                Err(error) => {
                    tracing::error!(vm = %shared.vm, %error, "cannot watch QEMU");
                    return;
                }
            },
            _ = trim.tick() => {
                let logs = [shared.paths.console_log(), shared.paths.qemu_log()];
                let trimming = tokio::task::spawn_blocking(move || {
                    for log in logs {
                        if let Err(error) = files::trim(&log) {
                            tracing::warn!(log = %log.display(), %error, "cannot shorten a log");
                        }
                    }
                });
                let _ = trimming.await;
            }
        }
    }
    let status = process::reap(shared.pidfd.get_ref());
    // What it said before its end comes before the news of it.
    let last = qmp.lock().await.clone();
    let _ = tokio::time::timeout(Duration::from_secs(5), last.closed()).await;
    remove_remains(&shared.paths, &shared.cgroup);
    let detail = end_detail(status, files::last_words(&shared.paths.qemu_log(), shared.log_start));
    tracing::info!(vm = %shared.vm, detail, "QEMU ended");
    shared.gone.send_replace(Some(detail.clone()));
    let _ = shared.hub.sender.send(MachineEvent::Exited { detail });
}

/// How a process ended, with its last words.
pub fn end_detail(status: Option<String>, words: Option<String>) -> String {
    let status = status.unwrap_or_else(|| "its exit status is not known".to_owned());
    match words {
        Some(words) => format!("{status}; its last words: {words}"),
        None => status,
    }
}

/// Removes what a process that ended leaves: its sockets and its cgroup.
pub fn remove_remains(paths: &Paths, cgroup: &MachineCgroup) {
    for socket in [paths.qmp(), paths.serial(), paths.agent()] {
        let _ = files::remove(&socket);
    }
    creds::remove(&paths.migration());
    // Kept while somebody else's file is in it.
    let _ = std::fs::remove_dir(&paths.run);
    if let Err(error) = cgroup.remove() {
        tracing::debug!(%error, "the cgroup stays until the next start");
    }
}

//! Keeps the member's process running.
//!
//! It is a process of its own session, so it survives the daemon, and the next daemon
//! finds it by its data directory. When it dies it is started again.

use std::sync::Arc;
use std::time::Duration;

use basin_model::task::Problem;
use basin_qemu::qemu::cgroup::MachineCgroup;
use basin_store::StoreError;
use basin_store::etcd::{EtcdAdmin, EtcdIdentity, EtcdTls};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::config::{MemberConfig, MemberTls, is_current};
use super::process::{self, Process};
use crate::problem::problem;

/// One that dies sooner than this is started with growing pauses.
const LIVES_AT_LEAST: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What is known of the process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemberState {
    pub pid: Option<u32>,
    /// An earlier daemon started it.
    pub adopted: bool,
    /// It was started with other settings than it would be now: see
    /// [`EtcdMember::restart`].
    pub outdated: bool,
    /// Why it does not run.
    pub problem: Option<Problem>,
}

/// See the module. Clones are the same.
#[derive(Clone)]
pub struct EtcdMember(Arc<Inner>);

struct Inner {
    config: MemberConfig,
    cgroup: Option<MachineCgroup>,
    state: watch::Sender<MemberState>,
    /// Ends the watching, not the process.
    stop: CancellationToken,
    /// Held by whoever starts or ends the process.
    process: Mutex<Option<Arc<Process>>>,
}

impl EtcdMember {
    /// Adopts the process that runs, or starts one, and watches it until `stop`.
    pub async fn start(
        config: MemberConfig,
        cgroup: Option<MachineCgroup>,
        stop: &CancellationToken,
    ) -> EtcdMember {
        let member = EtcdMember::new(config, cgroup, stop);
        let first = member.ensure().await;
        let watching = member.clone();
        tokio::spawn(async move {
            let stop = watching.0.stop.clone();
            stop.run_until_cancelled(watching.watch(first)).await;
        });
        member
    }

    fn new(
        config: MemberConfig,
        cgroup: Option<MachineCgroup>,
        stop: &CancellationToken,
    ) -> EtcdMember {
        EtcdMember(Arc::new(Inner {
            config,
            cgroup,
            state: watch::Sender::new(MemberState::default()),
            stop: stop.child_token(),
            process: Mutex::default(),
        }))
    }

    pub fn state(&self) -> watch::Receiver<MemberState> {
        self.0.state.subscribe()
    }

    pub fn config(&self) -> &MemberConfig {
        &self.0.config
    }

    /// Asks this very member.
    pub fn admin(&self) -> Result<EtcdAdmin, StoreError> {
        let tls = self.0.config.tls.as_ref().map(MemberTls::client).transpose()?;
        EtcdAdmin::new(&[self.0.config.client_url()], tls.as_ref())
    }

    /// Ends the process; it is started anew, with the settings of now.
    pub async fn restart(&self) -> Result<(), Problem> {
        self.end().await
    }

    /// Ends the process for good. What it holds stays.
    pub async fn shut_down(&self) -> Result<(), Problem> {
        self.0.stop.cancel();
        self.end().await?;
        if let Some(cgroup) = &self.0.cgroup
            && let Err(error) = cgroup.remove()
        {
            tracing::warn!(%error, "the cgroup of etcd stays");
        }
        self.0.state.send_replace(MemberState::default());
        Ok(())
    }

    /// Ends the process for good and deletes what it holds: after the member was
    /// removed from the cluster.
    pub async fn remove(&self) -> Result<(), Problem> {
        self.shut_down().await?;
        self.delete().await
    }

    /// The same, of a member that nobody watches.
    pub async fn remove_stray(
        config: &MemberConfig,
        cgroup: Option<MachineCgroup>,
    ) -> Result<(), Problem> {
        EtcdMember::new(config.clone(), cgroup, &CancellationToken::new()).remove().await
    }

    async fn delete(&self) -> Result<(), Problem> {
        match tokio::fs::remove_dir_all(self.0.config.data_dir()).await {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                let detail = format!("cannot delete {}: {e}", self.0.config.data_dir().display());
                Err(problem("etcd-remains", detail, "delete the directory by hand"))
            }
            _ => Ok(()),
        }
    }

    async fn end(&self) -> Result<(), Problem> {
        let mut running = self.0.process.lock().await;
        let process = match running.take() {
            Some(process) => process,
            None => match process::find(&self.0.config) {
                Some(process) => Arc::new(process),
                None => return Ok(()),
            },
        };
        let advice = "end it by hand (kill -9)";
        process.end().await.map_err(|e| problem("etcd-does-not-end", e.to_string(), advice))
    }

    async fn watch(&self, mut running: Result<Arc<Process>, String>) {
        let mut pause = Duration::ZERO;
        loop {
            let began = Instant::now();
            let why = match running {
                Ok(process) => {
                    self.report(&process);
                    process.pidfd.ended().await;
                    // Reaped here, if it is this daemon's child.
                    drop(process);
                    self.0.process.lock().await.take();
                    let said = process::last_words(&self.0.config).unwrap_or_default();
                    format!("etcd has ended; it said last: {said}")
                }
                Err(why) => why,
            };
            tracing::error!(why, "etcd does not run");
            let advice = "read etcd.log in the cluster's directory; the daemon keeps trying";
            let problem = Some(problem("etcd-down", why, advice));
            self.0.state.send_replace(MemberState { problem, ..MemberState::default() });
            pause = if began.elapsed() >= LIVES_AT_LEAST {
                Duration::ZERO
            } else {
                (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE)
            };
            sleep(pause).await;
            running = self.ensure().await;
        }
    }

    fn report(&self, process: &Process) {
        let (pid, adopted) = (process.pid, process.child.is_none());
        let outdated = !is_current(&process.arguments, &self.0.config.arguments());
        tracing::info!(pid, adopted, outdated, "etcd runs");
        let state = MemberState { pid: Some(pid), adopted, outdated, problem: None };
        self.0.state.send_replace(state);
    }

    /// The one that runs, else a new one.
    async fn ensure(&self) -> Result<Arc<Process>, String> {
        let mut slot = self.0.process.lock().await;
        let process = match process::find(&self.0.config) {
            Some(process) => process,
            None => {
                let program = self.0.config.program.display();
                process::spawn(&self.0.config, self.0.cgroup.as_ref()).map_err(|e| {
                    if e.kind() == std::io::ErrorKind::NotFound {
                        format!("{program} is missing: apt-get install etcd-server")
                    } else {
                        format!("cannot start {program}: {e}")
                    }
                })?
            }
        };
        let process = Arc::new(process);
        *slot = Some(Arc::clone(&process));
        Ok(process)
    }
}

impl MemberTls {
    /// The server's own certificate is a client's, too.
    pub fn client(&self) -> Result<EtcdTls, StoreError> {
        let read = |path: &std::path::Path| {
            std::fs::read(path)
                .map_err(|e| StoreError::Unusable(format!("cannot read {}: {e}", path.display())))
        };
        let (certificate, key) = (read(&self.certificate)?, read(&self.key)?);
        let identity = EtcdIdentity { certificate, key };
        Ok(EtcdTls { ca: read(&self.ca)?, identity: Some(identity) })
    }
}

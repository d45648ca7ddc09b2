//! Drives a source to the end of its migration: looks, asks the pilot, sets what it says.
//!
//! Everything is in the QEMU: a daemon that was restarted drives on with a new [`Drive`].

use std::time::Duration;

use async_trait::async_trait;
use basin_model::Bytes;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::pilot::{Order, Outlook, Pilot, Policy};
use super::{Channel, MigrationPhase, MigrationStatus};
use crate::engine::{EngineError, Machine, MachineEvent};

/// What must be so before the target may run the guest.
#[async_trait]
pub trait Gate: Send + Sync {
    /// The guest is stopped here, and nothing of its last state has been sent. Every
    /// millisecond is one of silence. An error cancels the migration; so does a cancel
    /// meanwhile, which drops this where it stands.
    async fn before_switch(&self) -> Result<(), String>;
}

/// Nothing but the memory moves.
pub struct AlwaysOpen;

#[async_trait]
impl Gate for AlwaysOpen {
    async fn before_switch(&self) -> Result<(), String> {
        Ok(())
    }
}

/// How far it is, for whoever waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    pub phase: MigrationPhase,
    pub total: Bytes,
    pub remaining: Bytes,
    pub transferred: Bytes,
    pub passes: u64,
    /// In percent.
    pub throttle: u8,
    pub outlook: Outlook,
    pub elapsed: Duration,
}

impl Default for Progress {
    fn default() -> Progress {
        Progress {
            phase: MigrationPhase::None,
            total: Bytes::ZERO,
            remaining: Bytes::ZERO,
            transferred: Bytes::ZERO,
            passes: 0,
            throttle: 0,
            outlook: Outlook::default(),
            elapsed: Duration::ZERO,
        }
    }
}

/// A migration that ended well: the guest is the target's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// As the source's QEMU tells it.
    pub total: Option<Duration>,
    pub downtime: Option<Duration>,
    pub transferred: Bytes,
    pub passes: u64,
    pub postcopy: bool,
}

/// A migration that did not, and where the guest is.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The guest goes on here.
    #[error("the migration was cancelled")]
    Cancelled,
    /// The guest goes on here.
    #[error("the migration was given up: {why}")]
    GaveUp { why: String },
    /// The guest goes on here.
    #[error("the migration failed: {why}")]
    Failed { why: String },
    /// The target may run the guest, and this machine does not: only the target knows.
    #[error("the source does not know whether the target runs the guest: {why}")]
    Unclear { why: String },
    /// There is no migration, and was none since the launch.
    #[error("there is no migration to drive")]
    NotBegun,
    /// The source's process is no more. Before the switch its guest is lost with it.
    #[error("the source ended during the migration")]
    SourceGone,
}

/// See the module.
pub struct Drive<'a> {
    pub machine: &'a dyn Machine,
    pub channel: Channel,
    pub policy: Policy,
    pub gate: &'a dyn Gate,
    pub progress: &'a watch::Sender<Progress>,
    pub cancel: &'a CancellationToken,
}

/// How often a migration is looked at.
/// After a switch by post-copy: until then its target has surely started its devices, and
/// only what it asks for is sent.
const FEW_PAGES_FOR: Duration = Duration::from_millis(500);
const SOON: Duration = Duration::from_millis(1);
const OFTEN: Duration = Duration::from_millis(5);
const SELDOM: Duration = Duration::from_millis(100);
/// How long a source may take to send its last part, or to answer at all.
const SWITCH_LIMIT: Duration = Duration::from_secs(30);

/// What a look at the migration leads to.
enum Next {
    LookAgain(Duration),
    End(Result<Moved, DriveError>),
}

struct Driver<'a> {
    drive: Drive<'a>,
    pilot: Pilot,
    begun: Instant,
    /// Since when it stands where it is.
    phase: (MigrationPhase, Instant),
    /// Since when the source has not answered.
    silent: Option<Instant>,
    transferred: Bytes,
    /// In post-copy: what was over, and since when.
    moved: (Bytes, Instant),
    passes: u64,
    postcopy: bool,
    /// In post-copy, as fast as it may be.
    full_speed: bool,
    committed: bool,
    gave_up: Option<String>,
}

impl Drive<'_> {
    /// Returns when the migration is over. Dropped, it leaves the migration as it is.
    pub async fn run(self) -> Result<Moved, DriveError> {
        let mut events = self.machine.events();
        let cancel = self.cancel.clone();
        let now = Instant::now();
        let mut driver = Driver {
            pilot: Pilot::new(self.policy.clone()),
            drive: self,
            begun: now,
            phase: (MigrationPhase::None, now),
            silent: None,
            transferred: Bytes::ZERO,
            moved: (Bytes::ZERO, now),
            passes: 0,
            postcopy: false,
            full_speed: false,
            committed: false,
            gave_up: None,
        };
        // A restarted daemon's policy may be another. What fails here fails again below.
        let _ = driver.drive.machine.set_limits(&driver.pilot.limits()).await;
        loop {
            let wait = match driver.look().await {
                Next::LookAgain(wait) => wait,
                Next::End(end) => return end,
            };
            let cancelled = driver.gave_up.is_some() || cancel.is_cancelled();
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = news(&mut events) => {}
                () = cancel.cancelled(), if !cancelled => {}
            }
        }
    }
}

/// Returns when the machine says something about its migration.
async fn news(events: &mut broadcast::Receiver<MachineEvent>) {
    loop {
        match events.recv().await {
            Ok(MachineEvent::Migration(_) | MachineEvent::Exited { .. }) => return,
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => return,
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

impl Driver<'_> {
    async fn look(&mut self) -> Next {
        let status = match self.drive.machine.migration().await {
            Ok(status) => status,
            Err(EngineError::Gone) => return Next::End(Err(self.gone())),
            Err(error) => {
                let since = *self.silent.get_or_insert_with(Instant::now);
                if since.elapsed() < SWITCH_LIMIT {
                    return Next::LookAgain(SELDOM);
                }
                return Next::End(Err(DriveError::Unclear { why: error.to_string() }));
            }
        };
        self.silent = None;
        self.tell(&status);
        if self.phase.0 != status.phase {
            tracing::debug!(phase = ?status.phase, ram = ?status.ram, "a migration goes on");
            self.phase = (status.phase.clone(), Instant::now());
        }
        match &status.phase {
            MigrationPhase::None => Next::End(Err(DriveError::NotBegun)),
            MigrationPhase::Setup | MigrationPhase::Active | MigrationPhase::PreSwitchover
                if !self.committed
                    && (self.drive.cancel.is_cancelled() || self.gave_up.is_some()) =>
            {
                self.cancel().await
            }
            MigrationPhase::Setup => self.set_up(),
            MigrationPhase::Active => self.copy(&status).await,
            MigrationPhase::PreSwitchover => self.switch().await,
            MigrationPhase::Switching => self.wait_for_the_end(),
            MigrationPhase::Postcopy | MigrationPhase::PostcopyPaused => self.follow().await,
            MigrationPhase::Cancelling => self.wait_for_the_end(),
            // QEMU reckons its times a moment after it says that it has completed.
            MigrationPhase::Completed
                if status.total_time.is_none_or(|time| time.is_zero())
                    && self.phase.1.elapsed() < 10 * OFTEN =>
            {
                Next::LookAgain(OFTEN)
            }
            MigrationPhase::Completed => Next::End(Ok(self.moved(&status))),
            MigrationPhase::Cancelled => Next::End(Err(match self.gave_up.take() {
                Some(why) => DriveError::GaveUp { why },
                None => DriveError::Cancelled,
            })),
            MigrationPhase::Failed { why } => Next::End(Err(self.failed(why).await)),
        }
    }

    fn tell(&mut self, status: &MigrationStatus) {
        let ram = status.ram.unwrap_or_default();
        if status.ram.is_some() {
            (self.transferred, self.passes) = (ram.transferred, ram.passes);
        }
        self.drive.progress.send_replace(Progress {
            phase: status.phase.clone(),
            total: ram.total,
            remaining: ram.remaining,
            transferred: ram.transferred,
            passes: ram.passes,
            throttle: status.throttle,
            outlook: self.pilot.outlook(),
            elapsed: self.begun.elapsed(),
        });
    }

    fn set_up(&mut self) -> Next {
        if self.phase.1.elapsed() > self.drive.policy.stall_limit {
            self.gave_up = Some("the target cannot be reached".to_owned());
            return Next::LookAgain(Duration::ZERO);
        }
        Next::LookAgain(OFTEN)
    }

    async fn copy(&mut self, status: &MigrationStatus) -> Next {
        for order in self.pilot.step(self.begun.elapsed(), status) {
            let (ram, outlook) = (status.ram, self.pilot.outlook());
            tracing::debug!(?order, ?ram, ?outlook, "a migration is steered");
            let done = match order {
                Order::Set(limits) => self.drive.machine.set_limits(&limits).await,
                Order::StartPostcopy => self.drive.machine.start_postcopy().await,
                Order::GiveUp { why } => {
                    self.gave_up = Some(why);
                    return Next::LookAgain(Duration::ZERO);
                }
            };
            if let Err(error) = done {
                tracing::warn!(%error, "a migration goes on without what was to be set");
            }
        }
        // Seldom while there is much to do: every look costs the source a little.
        let left = self.pilot.outlook().remaining_time.unwrap_or(OFTEN);
        Next::LookAgain((left / 8).clamp(OFTEN, SELDOM))
    }

    async fn switch(&mut self) -> Next {
        if self.committed {
            // It was told, and has not begun.
            return self.wait_for_the_end();
        }
        let passed = tokio::select! {
            biased;
            () = self.drive.cancel.cancelled() => return Next::LookAgain(Duration::ZERO),
            passed = self.drive.gate.before_switch() => passed,
        };
        if let Err(why) = passed {
            self.gave_up = Some(why);
            return Next::LookAgain(Duration::ZERO);
        }
        if self.drive.cancel.is_cancelled() {
            return Next::LookAgain(Duration::ZERO);
        }
        // Whether or not it is answered: it may have been heard.
        self.committed = true;
        if let Err(error) = self.drive.machine.continue_switchover().await {
            tracing::warn!(%error, "a source was told to send the rest");
        }
        Next::LookAgain(SOON)
    }

    /// In post-copy. A link that hangs is broken off: only what is broken can be mended,
    /// by [`Migrate::recover_postcopy`](super::Migrate::recover_postcopy).
    async fn follow(&mut self) -> Next {
        (self.committed, self.postcopy) = (true, true);
        if self.phase.0 == MigrationPhase::PostcopyPaused {
            return Next::LookAgain(SELDOM);
        }
        if !self.full_speed && self.phase.1.elapsed() > FEW_PAGES_FOR {
            match self.drive.machine.set_limits(&self.pilot.limits()).await {
                Ok(()) => self.full_speed = true,
                Err(error) => tracing::warn!(%error, "a post-copy goes on slowly"),
            }
        }
        if self.moved.0 != self.transferred {
            self.moved = (self.transferred, Instant::now());
        }
        let last = self.moved.1.max(self.phase.1);
        if last.elapsed() > self.drive.policy.stall_limit {
            self.moved.1 = Instant::now();
            if let Err(error) = self.drive.machine.pause_postcopy().await {
                tracing::warn!(%error, "a post-copy hangs and is not broken off");
            }
        }
        Next::LookAgain(OFTEN)
    }

    fn wait_for_the_end(&mut self) -> Next {
        self.committed |= self.phase.0 == MigrationPhase::Switching;
        if self.phase.1.elapsed() > SWITCH_LIMIT {
            let why = format!("it has been {:?} for {} s", self.phase.0, SWITCH_LIMIT.as_secs());
            return Next::End(Err(DriveError::Unclear { why }));
        }
        Next::LookAgain(OFTEN)
    }

    async fn cancel(&mut self) -> Next {
        if let Err(error) = self.drive.machine.cancel_migration().await {
            tracing::info!(%error, "a migration is not cancelled");
        }
        Next::LookAgain(OFTEN)
    }

    fn moved(&self, status: &MigrationStatus) -> Moved {
        Moved {
            total: status.total_time,
            downtime: status.downtime,
            transferred: self.transferred,
            passes: self.passes,
            postcopy: self.postcopy,
        }
    }

    /// The source runs its guest again by itself. Where post-copy was possible, it also does
    /// when only the target's last word was lost: then it is stopped until somebody asked.
    async fn failed(&mut self, why: &str) -> DriveError {
        let why = why.to_owned();
        if !(self.committed && self.drive.channel.postcopy) {
            return DriveError::Failed { why };
        }
        if let Err(error) = self.drive.machine.pause().await {
            tracing::warn!(%error, "a source whose target may run is not stopped");
        }
        DriveError::Unclear { why }
    }

    fn gone(&self) -> DriveError {
        match self.committed {
            true => DriveError::Unclear { why: "the source ended after the switch".to_owned() },
            false => DriveError::SourceGone,
        }
    }
}

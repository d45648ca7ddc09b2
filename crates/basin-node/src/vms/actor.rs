//! One task a VM: the only one that changes anything about it.
//!
//! It takes no orders. Whatever wakes it (a changed record, a machine's event, a
//! timer), it looks at what is wanted and what is, [decides](super::decide), takes
//! one step, and looks again until there is nothing left to do.

use std::sync::Arc;
use std::time::Duration;

use basin_model::keys;
use basin_model::vm::{Vm, VmStatus};
use basin_model::{HostId, VmId};
use basin_store::records::{self, CommitError, TxnBuilder, Versioned};
use basin_store::{Store, StoreError};
use jiff::Timestamp;
use tokio::sync::watch;

use super::Machines;
use super::decide::{Action, Facts, News, decide};
use super::hold::Hold;
use super::parts::Parts;
use crate::problem::{Explain, Unready};

/// The longest pause between tries of a step that fails, and the longest sleep
/// before a deadline: clocks are set meanwhile.
const LONGEST: Duration = Duration::from_secs(30);

/// See the module.
pub struct Actor {
    pub vm: VmId,
    pub host: HostId,
    pub parts: Arc<Parts>,
    pub machines: Machines,
    /// What is wanted; none: the VM is deleted.
    pub desired: watch::Receiver<Option<Arc<Vm>>>,
    pub hold: Option<Hold>,
    /// The server has rebooted since the last daemon ran.
    pub rebooted: bool,
    /// Dropped when this VM has been brought to where it should be once.
    pub first: Option<tokio::sync::mpsc::Sender<()>>,
}

/// What an actor keeps while it runs.
struct Live {
    status: Option<Versioned<VmStatus>>,
    news: News,
    /// Steps that failed, in a row.
    failed: u32,
}

/// How a run of steps ended.
enum Rest {
    Until(Option<Timestamp>),
    /// A step failed; again soon.
    Retry,
    /// Nothing of the VM is here any more.
    Over,
}

impl Actor {
    /// Runs until the VM is another server's, or nobody's.
    pub async fn run(mut self) {
        self.publish();
        let mut live = Live { status: self.first_status().await, news: News::default(), failed: 0 };
        loop {
            // Boxed, so that a VM at rest costs little memory.
            let rest = Box::pin(self.steps(&mut live)).await;
            self.first = None;
            let pause = match rest {
                Rest::Over => return,
                Rest::Retry => {
                    live.failed += 1;
                    Some(LONGEST.min(Duration::from_secs(1 << (live.failed - 1).min(5))))
                }
                Rest::Until(wake) => {
                    live.failed = 0;
                    wake.map(|at| pause_until(at).min(LONGEST))
                }
            };
            if !self.wait(&mut live, pause).await {
                return;
            }
        }
    }

    /// Waits for something to happen; false: the daemon stops.
    async fn wait(&mut self, live: &mut Live, pause: Option<Duration>) -> bool {
        let timer = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        let machine = async {
            match &mut self.hold {
                Some(hold) => hold.happened(&mut live.news).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = self.desired.changed() => changed.is_ok(),
            () = machine => true,
            () = timer => true,
        }
    }

    async fn first_status(&self) -> Option<Versioned<VmStatus>> {
        loop {
            match self.read_status().await {
                Ok(status) => return status,
                Err(error) => {
                    tracing::warn!(vm = %self.vm, %error, "cannot read the VM's status");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    async fn read_status(&self) -> Result<Option<Versioned<VmStatus>>, StoreError> {
        records::get(self.store(), &keys::vm_status(self.vm)).await
    }

    fn store(&self) -> &dyn Store {
        &*self.parts.store
    }

    fn publish(&self) {
        self.machines.set(self.vm, self.hold.as_ref().map(|h| (h.machine.clone(), h.generation)));
    }

    async fn steps(&mut self, live: &mut Live) -> Rest {
        loop {
            let mut answers = true;
            if let Some(hold) = &mut self.hold {
                answers = hold.look(&mut live.news).await;
                if hold.gone() {
                    self.hold = None;
                    self.publish();
                }
            }
            let vm = self.desired.borrow_and_update().clone();
            let facts = Facts {
                now: Timestamp::now(),
                host: self.host,
                machine: self.hold.as_ref().map(Hold::seen),
                news: &live.news,
                parts: self.hold.is_some() || self.parts.present(self.vm),
                rebooted: self.rebooted,
            };
            let decision = decide(vm.as_deref(), live.status.as_ref().map(|s| &s.value), &facts);
            let old = live.status.as_ref().map(|s| s.value.clone());
            let changed = decision.status.is_some() && decision.status != old;
            if let Some(status) = decision.status.filter(|_| changed) {
                let phase = &status.phase;
                tracing::info!(vm = %self.vm, ?phase, action = ?decision.action, decision.reason);
                match self.write(live, &status).await {
                    Ok(true) => {}
                    // Somebody else wrote: decide again from what they wrote, unless
                    // that is to let go, which needs no blessing.
                    Ok(false) if !matches!(decision.action, Action::LetGo { .. }) => continue,
                    Ok(false) => {}
                    Err(error) => {
                        tracing::warn!(vm = %self.vm, %error, "cannot write the VM's status");
                        return Rest::Retry;
                    }
                }
            }
            if live.news.guest_reboots > 0 {
                tracing::info!(vm = %self.vm, "the guest rebooted");
            }
            live.news = News::default();
            match self.act(decision.action, vm.as_deref(), live).await {
                Ok(true) => return Rest::Over,
                Ok(false) if decision.action != Action::Rest || changed => {}
                Ok(false) if !answers => return Rest::Retry,
                Ok(false) => return Rest::Until(decision.wake),
                Err(error) => {
                    let (why, action) = (&error.problem.detail, decision.action);
                    tracing::warn!(vm = %self.vm, ?action, why, "a step failed");
                    return Rest::Retry;
                }
            }
        }
    }

    /// True: the VM has been let go.
    async fn act(
        &mut self,
        action: Action,
        vm: Option<&Vm>,
        live: &mut Live,
    ) -> Result<bool, Unready> {
        let unready =
            |e: basin_qemu::EngineError| Unready { problem: e.problem(), tries: e.tries() };
        match (action, &mut self.hold) {
            (Action::Rest, _) => {}
            (Action::Launch, _) => self.launch(vm, live).await,
            (Action::Dismantle, _) => self.parts.dismantle(self.vm).await?,
            (Action::LetGo { forget }, _) => {
                if forget {
                    self.forget(live).await?;
                }
                return Ok(true);
            }
            // The machine has gone since; the next step sees to that.
            (_, None) => {}
            (Action::PressPowerButton, Some(hold)) => {
                hold.pressed = Some(Timestamp::now());
                // One that cannot be pressed is no reason to give up: the deadline counts.
                if let Err(error) = hold.machine.press_power_button().await {
                    tracing::warn!(vm = %self.vm, %error, "cannot press the power button");
                }
            }
            (Action::Pause, Some(hold)) => hold.machine.pause().await.map_err(unready)?,
            (Action::Resume, Some(hold)) => hold.machine.resume().await.map_err(unready)?,
            (Action::Reset, Some(hold)) => {
                let resets = vm.map_or(0, |vm| vm.run.resets);
                hold.machine.reset().await.map_err(unready)?;
                hold.reset_to = resets;
            }
            (Action::Reclaim, Some(hold)) => {
                self.parts.take_back(self.vm).await?;
                match hold.machine.reclaim().await {
                    // A part of its memory was elsewhere, and is lost: what is left is no
                    // guest, and is started anew as after a crash.
                    Err(basin_qemu::EngineError::Refused { why, .. }) => {
                        tracing::warn!(vm = %self.vm, why, "a guest that moved cannot be taken back");
                        hold.machine.kill().await.map_err(unready)?;
                        live.news.died = Some(why);
                        self.hold = None;
                        self.publish();
                    }
                    outcome => outcome.map_err(unready)?,
                }
            }
            (Action::Kill, Some(hold)) => {
                hold.machine.kill().await.map_err(unready)?;
                self.hold = None;
                self.publish();
            }
        }
        Ok(false)
    }

    async fn launch(&mut self, vm: Option<&Vm>, live: &mut Live) {
        let Some((vm, placement)) = vm.and_then(|vm| Some((vm, vm.placement?))) else { return };
        self.rebooted = false;
        match self.parts.launch(vm, placement).await {
            Ok(machine) => {
                self.hold = Some(Hold::new(machine, placement.generation, vm.run.resets));
                self.publish();
            }
            Err(failure) => {
                tracing::warn!(vm = %self.vm, why = failure.message, "cannot start the VM");
                live.news.start_failed = Some(failure);
            }
        }
    }

    /// False: somebody else has written meanwhile, and that is read now.
    async fn write(&self, live: &mut Live, status: &VmStatus) -> Result<bool, StoreError> {
        let key = keys::vm_status(self.vm);
        let txn = match &live.status {
            Some(read) => TxnBuilder::new().replace(read, status),
            None => TxnBuilder::new().create(&key, status),
        };
        match txn.commit(self.store()).await {
            Ok(revision) => {
                live.status = Some(Versioned::new(key, status.clone(), revision));
                Ok(true)
            }
            Err(CommitError::Refused(_)) => {
                live.status = self.read_status().await?;
                Ok(false)
            }
            Err(CommitError::Store(error)) => Err(error),
        }
    }

    /// Removes the status of a VM that is no more.
    async fn forget(&self, live: &mut Live) -> Result<(), Unready> {
        let Some(read) = live.status.take() else { return Ok(()) };
        let txn = TxnBuilder::new().require_unchanged(&read).delete(&read.key);
        match txn.commit(self.store()).await {
            Ok(_) | Err(CommitError::Refused(_)) => Ok(()),
            Err(CommitError::Store(error)) => {
                live.status = Some(read);
                Err(Unready { problem: error.problem(), tries: error.tries() })
            }
        }
    }
}

fn pause_until(at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default()
}

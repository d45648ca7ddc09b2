//! The machine that waits for a guest, from its making to the guest's arrival or its end.
//!
//! One at a time works on it: preparing, giving up, and taking the guest over exclude
//! each other. Whether the guest has run here is never guessed: a machine that was
//! killed while it waited is asked for afterwards, at its disks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use basin_model::vm::{Migration, Vm};
use basin_model::{Generation, TaskId, VmId};
use basin_qemu::migrate::{Incoming, MigrationPhase};
use basin_qemu::{EngineError, Machine, MachineEvent, MachineState};
use tokio::sync::Mutex;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::claim::Claim;
use super::lost::{self, MadeWith};
use super::types::{Aborted, Prepare, Prepared};
use super::{Answer, Migrations};
use crate::api::NodeError;
use crate::problem::{node_error, problem};
use crate::vms::parts::{Arriving, Parts};

/// Whoever had the VM here before has this long to let go of it.
const LET_GO_WITHIN: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// A machine that does not say how it is is asked again.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// See the module.
pub struct Coming {
    pub vm: VmId,
    pub task: TaskId,
    pub generation: Generation,
    /// The guest was seen to run here.
    ran: AtomicBool,
    state: Mutex<State>,
}

enum State {
    /// Nothing is here yet.
    New,
    /// `prepared`: what was answered, unless an earlier daemon answered it.
    Waits { machine: Arc<dyn Machine>, prepared: Option<Prepared> },
    /// The guest is here: this server is, or becomes, the VM's owner.
    Arrived,
    /// It was given up.
    Dead,
}

impl Coming {
    pub fn new(vm: VmId, migration: &Migration) -> Arc<Coming> {
        Arc::new(Coming {
            vm,
            task: migration.task,
            generation: migration.generation,
            ran: AtomicBool::new(false),
            state: Mutex::new(State::New),
        })
    }

    pub async fn prepare(
        self: &Arc<Self>,
        migrations: &Migrations,
        prepare: &Prepare,
    ) -> Answer<Prepared> {
        let mut state = self.state.lock().await;
        match &*state {
            State::New => {}
            State::Waits { prepared: Some(prepared), .. } => return Ok(prepared.clone()),
            State::Waits { machine, prepared: None } => {
                let machine = machine.clone();
                let prepared = self.again(migrations, prepare, &*machine).await?;
                *state = State::Waits { machine, prepared: Some(prepared.clone()) };
                return Ok(prepared);
            }
            State::Arrived => return Err(over("its guest has arrived here already")),
            State::Dead => return Err(over("it was given up here")),
        }
        let made = MadeWith::now(&migrations.0.parts);
        let (machine, prepared) = self.make(migrations, prepare).await?;
        self.watch(migrations, machine.clone(), made);
        *state = State::Waits { machine, prepared: Some(prepared.clone()) };
        Ok(prepared)
    }

    /// What an earlier daemon answered, found out again.
    async fn again(
        &self,
        migrations: &Migrations,
        prepare: &Prepare,
        machine: &dyn Machine,
    ) -> Answer<Prepared> {
        let arriving = self.arriving(prepare);
        let address = migrations.address().await?;
        let address = machine.listen(address).await.map_err(|e| node_error(&e))?;
        let disks = migrations.0.parts.served(&arriving).await?;
        Ok(Prepared { address, disks })
    }

    fn arriving<'a>(&self, prepare: &'a Prepare) -> Arriving<'a> {
        Arriving {
            vm: &prepare.vm,
            generation: self.generation,
            moved: &prepare.volumes,
            from: prepare.source,
        }
    }

    async fn make(
        &self,
        migrations: &Migrations,
        prepare: &Prepare,
    ) -> Answer<(Arc<dyn Machine>, Prepared)> {
        let parts = &migrations.0.parts;
        self.let_go(migrations).await?;
        let arriving = self.arriving(prepare);
        let address = migrations.address().await?;
        let made = async {
            let disks = parts.make_room(&arriving).await?;
            let Prepare { hardware, key, channel, .. } = prepare;
            let incoming =
                Incoming { hardware: hardware.clone(), key: key.clone(), channel: *channel };
            let machine = parts.launch_incoming(&arriving, &incoming).await?;
            match machine.listen(address).await {
                Ok(listens) => Ok((machine, Prepared { address: listens, disks })),
                Err(error) => {
                    machine.kill().await.map_err(|e| node_error(&e))?;
                    Err(node_error(&error))
                }
            }
        };
        let made: Answer<_> = made.await;
        if made.is_err()
            && let Err(error) = parts.clear(&prepare.vm, self.generation).await
        {
            let why = &error.problem.detail;
            tracing::warn!(vm = %self.vm, why, "cannot take away what a move left that failed");
        }
        made
    }

    /// Waits until nothing is here of a time when the VM was this server's.
    async fn let_go(&self, migrations: &Migrations) -> Answer<()> {
        let begun = tokio::time::Instant::now();
        loop {
            let busy = migrations.0.machines.get(self.vm).is_some();
            if !busy && !migrations.0.parts.present(self.vm) {
                return Ok(());
            }
            // What an earlier try left that was cut off has no machine.
            if !busy && begun.elapsed() > LET_GO_WITHIN / 2 {
                let dismantled = migrations.0.parts.dismantle(self.vm).await;
                dismantled.map_err(|e| NodeError(e.problem))?;
            }
            if begun.elapsed() > LET_GO_WITHIN {
                let detail = format!("VM {} is still being let go here", self.vm);
                return Err(problem("busy", detail, "try again in a moment").into());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// A machine that an earlier daemon made.
    pub fn adopt(self: &Arc<Self>, migrations: &Migrations, machine: Arc<dyn Machine>) {
        if let Ok(mut state) = self.state.try_lock() {
            *state = State::Waits { machine: machine.clone(), prepared: None };
        }
        let made = MadeWith::now(&migrations.0.parts);
        self.watch(migrations, machine, made);
    }

    /// Sees the guest arrive, and takes it over.
    fn watch(self: &Arc<Self>, migrations: &Migrations, machine: Arc<dyn Machine>, made: MadeWith) {
        let (coming, migrations) = (self.clone(), migrations.clone());
        let stop = migrations.0.stop.clone();
        let tasks = migrations.0.tasks.clone();
        tasks.spawn(async move {
            let arrives = async {
                if coming.arrival(&machine, &made).await {
                    let vm = coming.vm;
                    tokio::join!(
                        coming.take_over(&migrations, Some(machine.clone())),
                        lost::watch(&migrations, vm, made, machine.clone()),
                    );
                }
            };
            stop.run_until_cancelled(arrives).await;
        });
    }

    /// True: the guest runs here. False: the machine is no more.
    async fn arrival(&self, machine: &Arc<dyn Machine>, made: &MadeWith) -> bool {
        let mut events = machine.events();
        loop {
            match machine.state().await {
                Ok(MachineState::Incoming) if made.replaced() => self.end(&**machine).await,
                Ok(MachineState::Incoming) => {}
                Ok(MachineState::Gone) | Err(EngineError::Gone) => {
                    // It may have come in the last moment.
                    while let Ok(event) = events.try_recv() {
                        self.note(&event);
                    }
                    return self.has_run();
                }
                Ok(_) => {
                    self.ran.store(true, Ordering::SeqCst);
                    return true;
                }
                Err(_) => {}
            }
            tokio::select! {
                () = self.next(&mut events) => {}
                () = tokio::time::sleep(ASK_EVERY) => {}
            }
        }
    }

    /// Its disks would not come back. In post-copy its source has let go already: then it
    /// runs the guest, and [`lost`] sees to the rest.
    async fn end(&self, machine: &dyn Machine) {
        let status = machine.migration().await;
        if status.is_ok_and(|status| status.phase == MigrationPhase::Postcopy) {
            return;
        }
        tracing::warn!(vm = %self.vm, "blockd died under a machine that waits for a guest: the \
            machine is ended");
        if let Err(error) = machine.kill().await {
            tracing::warn!(vm = %self.vm, %error, "it cannot be ended");
        }
    }

    async fn next(&self, events: &mut Receiver<MachineEvent>) {
        match events.recv().await {
            Ok(event) => self.note(&event),
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }

    fn note(&self, event: &MachineEvent) {
        if matches!(event, MachineEvent::Resumed) {
            self.ran.store(true, Ordering::SeqCst);
        }
    }

    fn has_run(&self) -> bool {
        self.ran.load(Ordering::SeqCst)
    }

    /// Makes this server the owner. Goes on until it is, or the VM is somebody else's.
    async fn take_over(&self, migrations: &Migrations, machine: Option<Arc<dyn Machine>>) {
        *self.state.lock().await = State::Arrived;
        self.claim().take_over(migrations, machine).await;
    }

    fn claim(&self) -> Claim {
        Claim { vm: self.vm, task: self.task, generation: self.generation }
    }

    /// Gives the move up if the guest has not come. Once it says `Dead`, nothing of the
    /// move is here, and the guest has never run here.
    pub async fn abort(&self, migrations: &Migrations) -> Answer<Aborted> {
        let mut state = self.state.lock().await;
        let machine = match &*state {
            State::Dead => return Ok(Aborted::Dead),
            State::Arrived => return Ok(Aborted::Runs),
            State::Waits { machine, .. } => Some(machine.clone()),
            State::New => migrations.0.machines.get(self.vm),
        };
        if let Some(machine) = machine {
            match machine.state().await {
                Ok(MachineState::Incoming | MachineState::Gone) | Err(EngineError::Gone) => {}
                // It is about to be taken over by whoever watches it.
                Ok(_) => return Ok(Aborted::Runs),
                // Dead it can be made, whatever it would say.
                Err(_) => {}
            }
            machine.kill().await.map_err(|e| node_error(&e))?;
        }
        // The machine is dead: what it did is not going to change any more.
        let parts = &migrations.0.parts;
        if self.has_run() || parts.was_used(self.vm).await.map_err(|e| node_error(&e))? {
            *state = State::Arrived;
            drop(state);
            let claim = self.claim();
            let migrations = migrations.clone();
            let tasks = migrations.0.tasks.clone();
            tasks.spawn(async move { claim.take_over(&migrations, None).await });
            return Ok(Aborted::Runs);
        }
        let record = migrations.record(self.vm).await?;
        self.clear(parts, record.as_ref()).await?;
        *state = State::Dead;
        Ok(Aborted::Dead)
    }

    async fn clear(&self, parts: &Parts, record: Option<&Vm>) -> Answer<()> {
        let cleared = async {
            match record {
                Some(vm) => parts.clear(vm, self.generation).await,
                None => {
                    parts.dismantle(self.vm).await?;
                    parts.forget(self.vm).await
                }
            }
        };
        cleared.await.map_err(|e| NodeError(e.problem))
    }
}

fn over(why: &str) -> NodeError {
    let detail = format!("the migration is over: {why}");
    problem("migration-over", detail, "start it anew").into()
}

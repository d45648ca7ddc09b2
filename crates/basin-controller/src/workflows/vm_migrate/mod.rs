//! Moves a running VM to another server, without stopping it.
//!
//! Reserved at the start: the VM's lock, so that nobody starts, stops, changes or deletes
//! it. Its record stays as it is until `announce`.
//!
//! | step     | does                                                | undone by            |
//! |----------|-----------------------------------------------------|----------------------|
//! | check    | asks both servers whether the guest can go over     |                      |
//! | announce | notes the move in the VM's record                   | `withdraw`           |
//! | prepare  | the target makes a machine that waits for the guest | `stand_down`         |
//! | transfer | the guest goes over; decides the whole              |                      |
//! | tidy     | what the source keeps of it goes                    | (goes forward only)  |
//! | end      | the lock goes                                       |                      |
//!
//! # Who may run the guest
//!
//! Never two servers, whatever dies. This is what the steps hold to:
//!
//! 1. The target claims the VM itself, in one transaction (placement = target, `migration`
//!    = none, disks where they are now), as soon as its guest runs. The workflow does not:
//!    it watches the record, and has succeeded when the claim is there (`Standing`).
//! 2. While the record has a `migration`, no server starts, resumes or restarts the VM by
//!    itself; only the source's QEMU goes on by itself as long as it has not sent all.
//! 3. The workflow takes the `migration` away without a claim only after the source has
//!    said that its part is over, and the target that its machine is dead and has never
//!    run the guest (`Aborted::Dead`, which stays true). Both are asked again until they
//!    answer, by whichever server leads; a server is passed over only once its own record
//!    is gone: somebody has vouched that it does not come back.
//! 4. If the target answers `Aborted::Runs`, its claim is under way: the workflow waits
//!    for it. Then the move has succeeded, even if it was to be undone.
//!
//! So a source that is cut off after the switch stands still rather than runs again, and a
//! target that is cut off runs on and claims when it reaches the store.

mod back;
mod channel;
mod transfer;
mod words;

use std::collections::BTreeMap;
use std::time::Duration;

use basin_model::keys::{self, Kind};
use basin_model::task::Problem;
use basin_model::vm::{Migration, MigrationPolicy, MovedDisk, Phase, Placement, Vm};
use basin_model::volume::Volume;
use basin_model::{HostId, TaskId, VmId, VolumeId};
use basin_node::NodeError;
use basin_node::migration::types::{Prepare, Prepared};
use basin_qemu::Hardware;
use basin_qemu::migrate::{Channel, MigrationKey, MigrationSupport};
use basin_store::records::{self, CommitError, TxnBuilder, Versioned};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::observe::{self, commit, must};
use crate::app::nodes::refused;
use crate::app::{Services, problems, store_problem};
use crate::workflow::{Step, StepContext, Workflow};

/// How long the servers have to say what they can do; QEMU may have to be asked first.
const CHECK_WITHIN: Duration = Duration::from_secs(30);

/// How long the source has to let go of a guest that has left it.
const LET_GO_WITHIN: Duration = Duration::from_secs(30);

/// A source that does not answer, for its daemon is being restarted, has this long to forget
/// a guest that has left it.
const FORGET_WITHIN: Duration = Duration::from_secs(60);

/// How long a new owner has to say how its VM is, before the task is done without that.
const SEEN_WITHIN: Duration = Duration::from_secs(5);

const LOOK_EVERY: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmMigrate {
    /// As it was when the move was decided.
    vm: Vm,
    from: Placement,
    to: HostId,
    disks: BTreeMap<VolumeId, MovedDisk>,
    /// The volumes that move, as they are at the source.
    volumes: Vec<Volume>,
    policy: MigrationPolicy,
    agreed: Option<Agreed>,
    prepared: Option<Prepared>,
}

/// What both servers have said they can do.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Agreed {
    hardware: Hardware,
    channel: Channel,
    key: MigrationKey,
    /// What was wanted and is not had.
    #[serde(default)]
    without: Vec<String>,
}

/// What the VM's record says of the move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Not announced, or withdrawn.
    NotUnderWay,
    UnderWay,
    /// The VM is the target's.
    Claimed,
}

impl VmMigrate {
    /// The workflow, and the transaction that takes the lock while everything is as it was
    /// read. `from` is the VM's placement.
    pub fn new(
        vm: &Versioned<Vm>,
        from: Placement,
        to: HostId,
        moved: &[(&Versioned<Volume>, MovedDisk)],
        policy: MigrationPolicy,
    ) -> (VmMigrate, TxnBuilder) {
        let mut txn =
            TxnBuilder::new().require_unchanged(vm).create(keys::lock(Kind::Vm, vm.value.id), &());
        for (volume, _) in moved {
            let lock = keys::lock(Kind::Volume, volume.value.id);
            txn = txn.require_unchanged(volume).require_absent(lock);
        }
        let flow = VmMigrate {
            vm: vm.value.clone(),
            from,
            to,
            disks: moved.iter().map(|(volume, to)| (volume.value.id, *to)).collect(),
            volumes: moved.iter().map(|(volume, _)| volume.value.clone()).collect(),
            policy,
            agreed: None,
            prepared: None,
        };
        (flow, txn)
    }

    fn id(&self) -> VmId {
        self.vm.id
    }

    fn claim(&self) -> Placement {
        Placement { host: self.to, generation: self.from.generation.next() }
    }

    fn standing(&self, vm: Option<&Vm>, task: TaskId) -> Standing {
        let Some(vm) = vm else { return Standing::NotUnderWay };
        if vm.placement == Some(self.claim()) {
            return Standing::Claimed;
        }
        match &vm.migration {
            Some(migration) if migration.task == task => Standing::UnderWay,
            _ => Standing::NotUnderWay,
        }
    }

    async fn record(&self, cx: &StepContext<Services>) -> Result<Option<Versioned<Vm>>, Problem> {
        must(records::get::<Vm>(&*cx.services.store, &keys::vm(self.id())).await)
    }

    async fn check(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        let source = cx.services.nodes.get(self.from.host)?;
        let target = cx.services.nodes.get(self.to)?;
        let asked = async {
            let (hardware, here, there) = tokio::try_join!(
                source.guest_hardware(self.id()),
                source.migration_support(),
                target.migration_support(),
            )
            .map_err(refused)?;
            Ok((hardware, here, there))
        };
        let answer = tokio::time::timeout(CHECK_WITHIN, cx.unless_cancelled(asked)).await;
        let (hardware, here, there): (Hardware, MigrationSupport, MigrationSupport) =
            answer.map_err(|_| problems::timeout("Asking both servers"))??;
        let why = there.refuse(&hardware);
        if !why.is_empty() {
            return Err(self.cannot(&why, cx));
        }
        let wanted = {
            let snapshot = cx.services.inventory.read();
            let cpus = [self.from.host, self.to].map(|host| {
                snapshot.host_statuses.get(&host).map_or(1, |s| s.value.capacity.cpus.0)
            });
            channel::wanted(&self.policy, &hardware.accelerator, cpus)
        };
        let (channel, less) = here.agree(&there, wanted, !self.vm.spec.disks.is_empty());
        if let Some(why) = channel::too_little(&self.policy, channel, &less) {
            return Err(self.cannot(&[why], cx));
        }
        for why in &less {
            tracing::info!(vm = %self.vm.meta.name, why, "a move goes without what was wanted");
        }
        self.agreed = Some(Agreed { hardware, channel, key: MigrationKey::fresh(), without: less });
        Ok(())
    }

    fn cannot(&self, why: &[String], cx: &StepContext<Services>) -> Problem {
        let (vm, to) = (&self.vm.meta.name, self.name(self.to, cx));
        problems::cannot_move(
            vm,
            format!("to {to}: {}", why.join("; ")),
            "Move it to another server; or shut it down and start it there.",
        )
    }

    fn name(&self, host: HostId, cx: &StepContext<Services>) -> String {
        let snapshot = cx.services.inventory.read();
        let host_record = snapshot.hosts.get(&host);
        host_record.map_or_else(|| host.to_string(), |h| h.value.meta.name.to_string())
    }

    async fn announce(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        loop {
            let name = &self.vm.meta.name;
            let record = self.record(cx).await?;
            let record = record.ok_or_else(|| problems::not_found("vm", name.as_str()))?;
            if self.standing(Some(&record.value), cx.task) == Standing::UnderWay {
                return Ok(());
            }
            if record.value.placement != Some(self.from) || record.value.migration.is_some() {
                return Err(problems::busy("vm", name));
            }
            let migration = Migration {
                task: cx.task,
                to: self.to,
                generation: self.claim().generation,
                disks: self.disks.clone(),
            };
            let announced = Vm { migration: Some(migration), ..record.value.clone() };
            match commit(TxnBuilder::new().replace(&record, &announced), cx).await {
                Ok(_) => return Ok(()),
                // Somebody changed the record meanwhile: from what it is now.
                Err(CommitError::Refused(_)) => {}
                Err(CommitError::Store(e)) => return Err(store_problem(&e)),
            }
        }
    }

    async fn prepare(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        let record = self.record(cx).await?;
        let record = record.ok_or_else(|| problems::not_found("vm", self.vm.meta.name.as_str()))?;
        let Agreed { hardware, channel, key, .. } = self.agreed()?.clone();
        let prepare = Prepare {
            vm: record.value,
            hardware,
            key,
            channel,
            source: self.from.host,
            volumes: self.volumes.clone(),
        };
        let node = cx.services.nodes.get(self.to)?;
        // The target goes on with it all the same, and is then told to give up.
        let made =
            cx.unless_cancelled(async { node.migrate_prepare(&prepare).await.map_err(refused) });
        self.prepared = Some(made.await?);
        Ok(())
    }

    fn agreed(&self) -> Result<&Agreed, Problem> {
        self.agreed.as_ref().ok_or_else(|| problems::broken("what the servers agreed on is lost"))
    }

    async fn tidy(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        self.await_owner(cx).await;
        let source = {
            let gone = !cx.services.inventory.read().hosts.contains_key(&self.from.host);
            if gone { None } else { Some(cx.services.nodes.get(self.from.host)?) }
        };
        // Whoever vouched that the server does not come back gave up what is on it.
        let Some(source) = source else { return Ok(()) };
        for volume in &self.volumes {
            let key = keys::volume(volume.id);
            let now = must(records::get::<Volume>(&*cx.services.store, &key).await)?;
            if now.is_some_and(|now| now.value.datastore == volume.datastore) {
                // Not what a claim leaves: better a file too many than a disk too few.
                let volume = &volume.meta.name;
                tracing::error!(%volume, "a disk that has moved is where it was, and stays");
                continue;
            }
            let_go(|| source.delete_volume(volume), Duration::ZERO).await?;
        }
        // Its console's log and the like: of no use there, and no reason to keep the VM
        // locked until a server that has died comes back.
        if let Err(problem) = let_go(|| source.forget_vm(self.id()), FORGET_WITHIN).await {
            let (vm, why) = (&self.vm.meta.name, problem.detail);
            tracing::warn!(%vm, why, "what the source knows of a VM that has left it stays");
        }
        Ok(())
    }

    /// Until the new owner has said how the VM is; not for long.
    async fn await_owner(&self, cx: &StepContext<Services>) {
        let claim = self.claim();
        let seen = observe::vm(self.id(), "Seeing the VM", SEEN_WITHIN, cx, |seen| {
            let own = seen.status.filter(|s| s.generation >= claim.generation)?;
            (own.phase != Phase::Starting).then_some(Ok(()))
        });
        // It is the target's whether or not it has said so yet.
        let _ = seen.await;
    }
}

/// Asks for something that the source does as soon as the guest's remains are gone, and it
/// answers.
async fn let_go<'a>(
    ask: impl Fn() -> BoxFuture<'a, Result<(), NodeError>> + Send,
    answers_within: Duration,
) -> Result<(), Problem> {
    let begun = tokio::time::Instant::now();
    loop {
        match ask().await {
            Ok(()) => return Ok(()),
            Err(e)
                if begun.elapsed() < LET_GO_WITHIN
                    && matches!(e.0.code.as_str(), "volume-in-use" | "vm-running") =>
            {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Err(e) if begun.elapsed() < answers_within && transfer::is_unreachable(&e.0) => {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Err(e) => return Err(refused(e)),
        }
    }
}

impl Workflow for VmMigrate {
    type Services = Services;
    const KIND: &'static str = "vm-migrate";

    fn subject(&self) -> String {
        format!("vm/{}", self.vm.id)
    }

    fn steps() -> Vec<Step<Self>> {
        vec![
            Step::without_undo("check", Self::check),
            Step::undoable("announce", Self::announce, Self::withdraw),
            Step::undoable("prepare", Self::prepare, Self::stand_down).weight(2),
            Step::decisive("transfer", Self::transfer).weight(50),
            Step::forward("tidy", Self::tidy),
        ]
    }

    fn on_done(&self) -> TxnBuilder {
        TxnBuilder::new().delete(keys::lock(Kind::Vm, self.vm.id))
    }

    fn on_undone(&self) -> TxnBuilder {
        self.on_done()
    }
}

//! Live migration on a server: as the source of a guest, and as its target.
//!
//! - `outgoing`: drives the source of a move. `gate`: lets its disks go at the switch.
//! - `incoming`: the machine that waits for a guest. `claim`: makes this server its owner.
//! - [`types`]: what is said about it between servers.
//!
//! Nothing here decides whether a VM moves: that is the workflow's, in the controller.
//! What runs in QEMU goes on without the daemon; a new daemon finds it again by the
//! VM's record, the machine, and the note of what the machine stands on.

mod claim;
mod gate;
mod incoming;
mod lost;
mod outgoing;
mod policy;
pub mod types;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use basin_model::host::Host;
use basin_model::vm::Vm;
use basin_model::{HostId, TaskId, VmId, keys};
use basin_qemu::migrate::MigrationPhase;
use basin_qemu::{Hardware, Machine};
use basin_store::records;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::NodeError;
use crate::problem::{node_error, problem};
use crate::vms::parts::Parts;
use crate::vms::{Machines, Vms};
use incoming::Coming;
use outgoing::Going;
use types::{Aborted, Begin, POSTCOPY_LOST, Prepare, Prepared, Report, Stage};

type Answer<T> = Result<T, NodeError>;

/// How long a server's own view of the store may be behind what another has written.
const SEEN_WITHIN: Duration = Duration::from_secs(5);

/// All moves of which this server is a part. Clones are the same.
#[derive(Clone)]
pub struct Migrations(Arc<Inner>);

struct Inner {
    host: HostId,
    parts: Arc<Parts>,
    machines: Machines,
    vms: Vms,
    coming: Mutex<BTreeMap<VmId, Arc<Coming>>>,
    going: Mutex<BTreeMap<VmId, Arc<Going>>>,
    /// What an earlier daemon left has been taken over.
    adopted: watch::Sender<bool>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Migrations {
    pub fn new(
        host: HostId,
        parts: Arc<Parts>,
        machines: Machines,
        vms: Vms,
        stop: CancellationToken,
        tasks: TaskTracker,
    ) -> Migrations {
        let (coming, going) = Default::default();
        let adopted = watch::Sender::new(false);
        let inner = Inner { host, parts, machines, vms, coming, going, adopted, stop, tasks };
        Migrations(Arc::new(inner))
    }

    /// Everything that an earlier daemon left has been taken over.
    pub fn all_adopted(&self) {
        self.0.adopted.send_replace(true);
    }

    /// Nothing is answered about machines before it is known which there are: "it is dead"
    /// would be said of one that waits for its guest.
    async fn await_adopted(&self) -> Answer<()> {
        let mut adopted = self.0.adopted.subscribe();
        let known = tokio::time::timeout(SEEN_WITHIN, adopted.wait_for(|all| *all)).await;
        match known {
            Ok(Ok(_)) => Ok(()),
            _ => {
                let detail = "this server's daemon does not know yet what runs here".to_owned();
                Err(problem("host-starting", detail, "see whether it reaches the store").into())
            }
        }
    }

    /// What the guest of a VM that runs here has in its hands.
    pub async fn hardware(&self, vm: VmId) -> Answer<Hardware> {
        self.await_adopted().await?;
        let machine = self.0.machines.get(vm).ok_or_else(|| not_running(vm))?;
        Ok(machine.hardware())
    }

    // The target.

    pub async fn prepare(&self, prepare: &Prepare) -> Answer<Prepared> {
        self.await_adopted().await?;
        let migration = prepare.vm.migration.clone().filter(|m| m.to == self.0.host);
        let Some(migration) = migration else {
            let detail = format!("VM {} is not on its way to this server", prepare.vm.id);
            return Err(problem("migration-unknown", detail, "start the migration anew").into());
        };
        let coming = {
            let mut all = lock(&self.0.coming);
            let entry = all.entry(prepare.vm.id);
            let entry = entry.or_insert_with(|| Coming::new(prepare.vm.id, &migration));
            if entry.task != migration.task {
                *entry = Coming::new(prepare.vm.id, &migration);
            }
            entry.clone()
        };
        // To its end, also when whoever asked is gone: half of a machine is nobody's.
        let (migrations, prepare) = (self.clone(), prepare.clone());
        let work = async move { coming.prepare(&migrations, &prepare).await };
        self.0.tasks.spawn(work).await.unwrap_or_else(|error| {
            let detail = format!("preparing for the guest broke down: {error}");
            Err(problem("internal-error", detail, "see the daemon's log").into())
        })
    }

    /// A machine that waits for a guest, or has received one, was found at the start.
    pub fn adopt(&self, vm: &Vm, machine: Option<Arc<dyn Machine>>) {
        let Some(migration) = &vm.migration else { return };
        let coming = Coming::new(vm.id, migration);
        lock(&self.0.coming).insert(vm.id, coming.clone());
        if let Some(machine) = machine {
            coming.adopt(self, machine);
        }
    }

    pub async fn abort(&self, vm: VmId, task: TaskId) -> Answer<Aborted> {
        self.await_adopted().await?;
        let found = lock(&self.0.coming).get(&vm).filter(|c| c.task == task).cloned();
        let coming = match found {
            Some(coming) => coming,
            None => {
                let record = self.record(vm).await?;
                match record.and_then(|vm| vm.migration).filter(|m| m.task == task) {
                    // It was never prepared here, or an earlier daemon did.
                    Some(migration) => {
                        let coming = Coming::new(vm, &migration);
                        lock(&self.0.coming).insert(vm, coming.clone());
                        coming
                    }
                    // It is over: the record tells how.
                    None => return self.outcome(vm).await,
                }
            }
        };
        coming.abort(self).await
    }

    async fn outcome(&self, vm: VmId) -> Answer<Aborted> {
        let record = self.record(vm).await?;
        let here = record.and_then(|vm| vm.placement).is_some_and(|p| p.host == self.0.host);
        Ok(if here { Aborted::Runs } else { Aborted::Dead })
    }

    pub async fn listen_again(&self, vm: VmId, _: TaskId) -> Answer<SocketAddr> {
        self.await_adopted().await?;
        let machine = self.0.machines.get(vm).ok_or_else(|| lost(vm))?;
        match machine.migration().await.map_err(|e| node_error(&e))?.phase {
            // It may not have noticed yet that the connection is broken.
            MigrationPhase::Postcopy => {
                machine.pause_postcopy().await.map_err(|e| node_error(&e))?;
            }
            MigrationPhase::PostcopyPaused => {}
            _ => return Err(lost(vm)),
        }
        machine.listen_to_recover(self.address().await?).await.map_err(|e| node_error(&e))
    }

    // The source.

    pub async fn begin(&self, begin: &Begin) -> Answer<()> {
        self.await_adopted().await?;
        if self.going(begin.vm, begin.task).is_some_and(|going| !going.is_over()) {
            return Ok(());
        }
        let vm = self.seen(begin.vm, begin.task).await?;
        let machine = self.0.machines.get(begin.vm).ok_or_else(|| not_running(begin.vm))?;
        let going = Going::start(self, &vm, machine, begin)?;
        lock(&self.0.going).insert(begin.vm, going);
        Ok(())
    }

    pub async fn report(&self, vm: VmId, task: TaskId) -> Answer<Report> {
        match self.going(vm, task) {
            Some(going) => Ok(going.report()),
            None => Ok(outgoing::report(Stage::Unknown)),
        }
    }

    /// Before the switch the guest stays. After it there is one thing to give up: what a
    /// post-copy still has to fetch, once the target is the owner and does not want it.
    pub async fn cancel(&self, vm: VmId, task: TaskId) -> Answer<()> {
        let Some(going) = self.going(vm, task) else { return Ok(()) };
        going.cancel();
        if going.report().stage != Stage::PostcopyBroken {
            return Ok(());
        }
        let placement = self.record(vm).await?.and_then(|vm| vm.placement);
        if placement.is_some_and(|p| p.host != self.0.host)
            && let Some(machine) = self.0.machines.get(vm)
        {
            tracing::warn!(%vm, "what is left of a guest is given up: it is not wanted any more");
            machine.kill().await.map_err(|e| node_error(&e))?;
        }
        Ok(())
    }

    pub async fn reconnect(&self, vm: VmId, _: TaskId, to: SocketAddr) -> Answer<()> {
        let machine = self.0.machines.get(vm).ok_or_else(|| not_running(vm))?;
        machine.recover_postcopy(to).await.map_err(|e| node_error(&e))
    }

    fn going(&self, vm: VmId, task: TaskId) -> Option<Arc<Going>> {
        lock(&self.0.going).get(&vm).filter(|g| g.task == task).cloned()
    }

    /// The VM as this server's own tasks see it, once they have seen the migration:
    /// from then on they leave the machine to it.
    async fn seen(&self, vm: VmId, task: TaskId) -> Answer<Arc<Vm>> {
        let mut changes = self.0.vms.changes();
        let seen = async {
            loop {
                changes.borrow_and_update();
                let record = self.0.vms.get(vm);
                let known = |vm: &Arc<Vm>| vm.migration.as_ref().is_some_and(|m| m.task == task);
                if let Some(record) = record.filter(known) {
                    return Some(record);
                }
                changes.changed().await.ok()?;
            }
        };
        let seen = tokio::time::timeout(SEEN_WITHIN, seen).await.ok().flatten();
        seen.ok_or_else(|| {
            let detail = format!("this server does not see that VM {vm} is to move");
            problem("migration-unknown", detail, "see whether it reaches the store").into()
        })
    }

    async fn record(&self, vm: VmId) -> Answer<Option<Vm>> {
        let read = records::get::<Vm>(&*self.0.parts.store, &keys::vm(vm)).await;
        Ok(read.map_err(|e| node_error(&e))?.map(|r| r.value))
    }

    /// Where other servers reach this one.
    async fn address(&self) -> Answer<IpAddr> {
        let read = records::get::<Host>(&*self.0.parts.store, &keys::host(self.0.host)).await;
        let own = read.map_err(|e| node_error(&e))?;
        own.and_then(|h| h.value.address).ok_or_else(|| {
            let detail = "this server belongs to no cluster, so no guest can come".to_owned();
            problem("no-cluster", detail, "join one: 'basin join'").into()
        })
    }
}

/// The machine that fetched memory is no more, or has it all.
fn lost(vm: VmId) -> NodeError {
    let detail = format!("no machine of VM {vm} on this server waits for memory");
    problem(POSTCOPY_LOST, detail, "nothing: it is started anew by its failure policy").into()
}

fn not_running(vm: VmId) -> NodeError {
    let detail = format!("VM {vm} does not run on this server");
    problem("vm-not-running", detail, "see where it runs: 'basin vm show'").into()
}

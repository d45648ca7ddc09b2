//! A leader's duty: empties the servers that are to be empty, by moving what runs there.
//!
//! Nothing is remembered that a next leader would need: what is under way is in the
//! records, and what failed in the tasks.

use std::sync::Arc;
use std::time::Duration;

use basin_model::host::Drain;
use basin_model::vm::{MigrationPolicy, Phase, Placement};
use basin_model::{HostId, TaskId, VmId};
use basin_sched::drain::Start;
use basin_sched::movable::InFlight;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::app::drains::{self, Begun};
use crate::app::inventory::Snapshot;
use crate::app::moves::Facts;
use crate::app::vm_migrate::{Wish, draft};
use crate::app::{App, holds};
use crate::workflow::Workflow as _;
use crate::workflows::vm_migrate::VmMigrate;

/// Changes come in bursts.
const SETTLE: Duration = Duration::from_millis(100);

/// What passes is in no record: free space, disks that stand still, pauses after failures.
const AT_LEAST_EVERY: Duration = Duration::from_secs(5);

/// Empties servers while this one leads. Runs until stopped.
pub async fn keep(app: Arc<App>, stop: CancellationToken) {
    let mut leads = app.leadership.changes();
    let mut changes = app.inventory().changes();
    let mut begun = Begun::new();
    let mut seen = None;
    let mut looked = tokio::time::Instant::now();
    loop {
        changes.borrow_and_update();
        leads.borrow_and_update();
        let matters =
            app.leadership.leads().then(|| Matters::of(&app.inventory().read())).flatten();
        let due = looked.elapsed() >= AT_LEAST_EVERY;
        if matters.is_some() && (matters != seen || due) {
            looked = tokio::time::Instant::now();
            round(&app, &mut begun).await;
        }
        seen = matters;
        tokio::select! {
            () = stop.cancelled() => return,
            Ok(()) = changes.changed() => tokio::time::sleep(SETTLE).await,
            Ok(()) = leads.changed() => {}
            () = tokio::time::sleep(AT_LEAST_EVERY) => {}
        }
    }
}

/// What a plan follows from, of what the records tell: looked at anew when it changes.
#[derive(PartialEq)]
struct Matters {
    drains: Vec<(HostId, Drain)>,
    vms: Vec<(VmId, Option<Placement>, bool, Option<Phase>)>,
    moves: Vec<TaskId>,
}

impl Matters {
    /// None: no server is to be empty.
    fn of(snapshot: &Snapshot) -> Option<Matters> {
        let hosts = snapshot.hosts.values().map(|host| &host.value);
        let drains: Vec<_> = hosts.filter_map(|host| Some((host.id, host.drain?))).collect();
        if drains.is_empty() {
            return None;
        }
        let vm = |vm: &basin_model::vm::Vm| {
            let phase = snapshot.vm_statuses.get(&vm.id).map(|s| s.value.phase.clone());
            (vm.id, vm.placement, vm.migration.is_some(), phase)
        };
        let tasks = snapshot.tasks.values().map(|task| &task.value);
        let moves = tasks.filter(|task| task.kind == VmMigrate::KIND && !task.state.is_over());
        Some(Matters {
            drains,
            vms: snapshot.vms.values().map(|record| vm(&record.value)).collect(),
            moves: moves.map(|task| task.id).collect(),
        })
    }
}

async fn round(app: &App, begun: &mut Begun) {
    let facts = app.facts().await;
    let outlook = {
        let snapshot = app.inventory().read();
        begun.retain(|id, _| snapshot.tasks.get(id).is_some_and(|t| !t.value.state.is_over()));
        drains::look(&snapshot, &facts, begun, Timestamp::now())
    };
    for start in outlook.start {
        match begin(app, &start, &facts).await {
            Ok((task, flight)) => drop(begun.insert(task, flight)),
            // Somebody else was quicker, or it is not so any more: the next look tells.
            Err(problem) => {
                tracing::info!(vm = %start.vm, why = problem.detail, "a VM does not leave yet");
            }
        }
    }
}

async fn begin(
    app: &App,
    start: &Start,
    facts: &Facts,
) -> Result<(TaskId, InFlight), basin_model::task::Problem> {
    let (to, storage) = (Some(start.to), start.storage.clone());
    let wish = Wish { to, storage, policy: MigrationPolicy::default() };
    let mut flight = None;
    let task = app.start(|snapshot, _| {
        let vm = snapshot.vm(&start.vm.to_string())?;
        holds::free(&vm.value, snapshot)?;
        let moving = facts.view(snapshot).vm(start.vm);
        flight = moving.map(|moving| moving.in_flight(start.to, &start.storage));
        draft(vm, &wish, facts, snapshot)
    });
    let task = task.await?;
    tracing::info!(vm = %start.vm, to = %start.to, task = %task.id, "a VM leaves its server");
    let none = || InFlight {
        vm: start.vm,
        from: start.from,
        to: start.to,
        memory: None,
        space: Vec::new(),
    };
    Ok((task.id, flight.unwrap_or_else(none)))
}

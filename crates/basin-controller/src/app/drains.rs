//! Servers that are to be empty: what can leave them now, what is waited for, and what
//! cannot leave (decides: `basin-sched`).

use std::collections::BTreeMap;

use basin_model::host::Host;
use basin_model::task::{Task, TaskState};
use basin_model::{HostId, TaskId, VmId};
use basin_sched::drain::{Limits, Plan, Policy, Snapshot as Known, Start, plan};
use basin_sched::movable::{Activity, InFlight, MovingVm};
use jiff::{SignedDuration, Timestamp};

use super::inventory::Snapshot;
use super::moves::Facts;
use super::{App, holds};
use crate::workflow::Workflow as _;
use crate::workflows::vm_migrate::VmMigrate;

/// How long a VM is left alone whose move failed; twice as long after each further one.
const FIRST_PAUSE: SignedDuration = SignedDuration::from_secs(10);
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_secs(300);

/// Moves whose task has begun and is not announced in the VM's record yet.
pub type Begun = BTreeMap<TaskId, InFlight>;

/// What is to be done about all servers that are to be empty.
#[derive(Debug, Clone, Default)]
pub struct Outlook {
    pub start: Vec<Start>,
    pub stuck: Vec<Stuck>,
}

/// A VM that does not leave now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    pub on: HostId,
    pub vm: String,
    pub reasons: Vec<String>,
    /// It is tried again by itself; otherwise somebody has to do something.
    pub passes: bool,
}

impl App {
    /// What keeps servers from being empty that are to be. None is to be: nobody is asked.
    pub async fn stuck(&self) -> Vec<Stuck> {
        if !any(&self.inventory().read()) {
            return Vec::new();
        }
        let facts = self.facts().await;
        look(&self.inventory().read(), &facts, &Begun::new(), Timestamp::now()).stuck
    }
}

/// Whether any server is to be empty.
pub fn any(snapshot: &Snapshot) -> bool {
    snapshot.hosts.values().any(|host| host.value.drain.is_some())
}

/// Pure, of what is known.
pub fn look(snapshot: &Snapshot, facts: &Facts, begun: &Begun, now: Timestamp) -> Outlook {
    let view = facts.view(snapshot);
    let drained: BTreeMap<HostId, &Host> = snapshot
        .hosts
        .values()
        .map(|host| (host.value.id, &host.value))
        .filter(|(_, host)| host.drain.is_some())
        .collect();
    let mut outlook = Outlook::default();
    let mut vms = Vec::new();
    for vm in snapshot.vms.keys().filter_map(|id| view.vm(*id)) {
        // What is off keeps no server from being switched off.
        let Some(host) = drained.get(&vm.on).filter(|_| vm.activity != Activity::Off) else {
            continue;
        };
        if holds::holder(vm.vm, snapshot).is_some_and(|task| task.kind == VmMigrate::KIND) {
            // On its way.
            continue;
        }
        match resting(&vm, host, snapshot, now) {
            Some(stuck) => outlook.stuck.push(stuck),
            None => vms.push(vm),
        }
    }
    let mut in_flight = view.in_flight();
    let announced: Vec<VmId> = in_flight.iter().map(|flight| flight.vm).collect();
    in_flight.extend(begun.values().filter(|flight| !announced.contains(&flight.vm)).cloned());
    let drains = drained.iter().map(|(id, host)| {
        let move_local_disks = host.drain.is_some_and(|drain| drain.move_local_disks);
        (*id, Policy { move_local_disks })
    });
    let (sites, stores, drains) = (view.sites(), view.stores(), drains.collect());
    let known = Known { sites, stores, vms, in_flight, drains };
    let Plan { start, stuck, .. } = plan(&known, &Limits::default());
    outlook.start = start;
    outlook.stuck.extend(stuck.iter().map(|stuck| Stuck {
        on: stuck.on,
        vm: stuck.name.clone(),
        reasons: stuck.reasons(),
        passes: stuck.passes(),
    }));
    outlook
}

/// A VM whose move has failed, or was cancelled, since its server is drained: tried again
/// after a while, so that what fails at once does not fail all the time.
fn resting(vm: &MovingVm, host: &Host, snapshot: &Snapshot, now: Timestamp) -> Option<Stuck> {
    let since = host.drain?.since;
    let subject = format!("vm/{}", vm.vm);
    let ended = |task: &&Task| task.finished_at.is_some_and(|at| at >= since);
    let tasks = snapshot.tasks.values().map(|task| &task.value);
    let tasks = tasks.filter(|task| task.kind == VmMigrate::KIND && task.subject == subject);
    let failed: Vec<&Task> =
        tasks.filter(ended).filter(|task| task.state != TaskState::Done).collect();
    let last = failed.iter().max_by_key(|task| task.finished_at)?;
    let doubled = 1_i32 << (failed.len() - 1).min(5);
    let pause = (FIRST_PAUSE * doubled).min(LONGEST_PAUSE);
    let again = last.finished_at?.checked_add(pause).ok()?;
    if now >= again {
        return None;
    }
    let why = match &last.state {
        TaskState::Failed { problem } => problem.detail.clone(),
        _ => format!("task {}, which moved it, was cancelled", last.id),
    };
    let left = again.duration_since(now).as_secs().max(1);
    Some(Stuck {
        on: vm.on,
        vm: vm.name.clone(),
        reasons: vec![format!("{why} (it is tried again in {left} s)")],
        passes: true,
    })
}

//! Moving a running VM to another server: where to, and everything that prevents it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use basin_api::vm::{Postcopy, VmMigrate as Request};
use basin_model::task::{Problem, Task};
use basin_model::vm::{MigrationPolicy, MovedDisk, PostcopyPolicy, Vm};
use basin_model::volume::VolumeFormat;
use basin_model::{BytesPerSecond, DatastoreId, HostId};
use basin_sched::movable::{
    Activity, MovingVm, Obstacle, PassedOver, Storage, check, choose_target, count_in_flight,
};
use basin_store::records::{TxnBuilder, Versioned};

use super::inventory::Snapshot;
use super::moves::{Facts, View};
use super::{App, holds, problems};
use crate::workflows::vm_migrate::VmMigrate;

/// What is wanted of a move, resolved.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// None: the server with the most room.
    pub to: Option<HostId>,
    pub storage: Storage,
    pub policy: MigrationPolicy,
}

impl App {
    /// Moves a VM to another server while it runs.
    pub async fn migrate_vm(&self, reference: &str, request: &Request) -> Result<Task, Problem> {
        let facts = self.facts().await;
        self.start(|snapshot, _| draft_of(reference, request, &facts, snapshot)).await
    }
}

/// As [`draft`], for what somebody asks for.
pub fn draft_of(
    reference: &str,
    request: &Request,
    facts: &Facts,
    snapshot: &Snapshot,
) -> Result<(VmMigrate, TxnBuilder), Problem> {
    let vm = snapshot.vm(reference)?;
    holds::free(&vm.value, snapshot)?;
    let host = request.host.as_ref();
    let to = host.map(|host| Ok::<_, Problem>(snapshot.host(host)?.value.id)).transpose()?;
    let datastore = request.datastore.as_ref();
    let datastore = datastore
        .map(|name| Ok::<_, Problem>(snapshot.ready_datastore(name)?.value.id))
        .transpose()?;
    let storage = storage(&vm.value, datastore, facts, snapshot);
    draft(vm, &Wish { to, storage, policy: policy(request)? }, facts, snapshot)
}

fn policy(request: &Request) -> Result<MigrationPolicy, Problem> {
    let positive = |what: &str, value: Option<u64>| match value {
        Some(0) => Err(problems::invalid(format!("{what}: it is 0, and nothing would move"))),
        value => Ok(value),
    };
    let bandwidth = positive("bandwidth_bytes_per_second", request.bandwidth_bytes_per_second)?;
    let downtime = positive("downtime_ms", request.downtime_ms)?;
    let most_downtime = positive("most_downtime_ms", request.most_downtime_ms)?;
    Ok(MigrationPolicy {
        bandwidth: bandwidth.map(BytesPerSecond),
        downtime: downtime.map(Duration::from_millis),
        most_downtime: most_downtime.map(Duration::from_millis),
        no_throttle: request.no_throttle,
        postcopy: match request.postcopy {
            Postcopy::Never => PostcopyPolicy::Never,
            Postcopy::Fallback => PostcopyPolicy::Fallback,
            Postcopy::AtOnce => PostcopyPolicy::AtOnce,
        },
        or_stay: request.or_stay,
    })
}

/// All disks that can move go to the datastore; without one they stay.
fn storage(vm: &Vm, datastore: Option<DatastoreId>, facts: &Facts, snapshot: &Snapshot) -> Storage {
    let (Some(to), Some(moving)) = (datastore, facts.view(snapshot).vm(vm.id)) else {
        return Storage::Stay;
    };
    let disks = moving.disks.iter();
    let movable = disks.filter(|disk| disk.fixed.is_none() && disk.datastore != to);
    let each: BTreeMap<_, _> = movable.map(|disk| (disk.volume, to)).collect();
    if each.is_empty() { Storage::Stay } else { Storage::Each(each) }
}

/// The workflow that moves the VM, and the transaction that reserves what it needs; or
/// everything that prevents it.
pub fn draft(
    vm: &Versioned<Vm>,
    wish: &Wish,
    facts: &Facts,
    snapshot: &Snapshot,
) -> Result<(VmMigrate, TxnBuilder), Problem> {
    let view = facts.view(snapshot);
    let name = &vm.value.meta.name;
    let (Some(moving), Some(from)) = (view.vm(vm.value.id), vm.value.placement) else {
        return Err(off(name.as_str(), &Storage::Stay));
    };
    if moving.activity == Activity::Off {
        return Err(off(name.as_str(), &wish.storage));
    }
    let to = target(&moving, wish, &view)?;
    let mut moved = Vec::new();
    for disk in &moving.disks {
        if let Some(datastore) = wish.storage.moves(disk) {
            let volume = snapshot.volume(&disk.volume.to_string())?;
            moved.push((volume, MovedDisk { datastore, format: VolumeFormat::Raw }));
        }
    }
    let (flow, mut txn) = VmMigrate::new(vm, from, to, &moved, wish.policy);
    // It is drained or removed meanwhile: decided anew.
    if let Some(host) = snapshot.hosts.get(&to) {
        txn = txn.require_unchanged(host);
    }
    Ok((flow, txn))
}

/// A VM that is off has no server that it would have to leave.
fn off(name: &str, storage: &Storage) -> Problem {
    let (is, advice) = match storage {
        Storage::Stay => (
            "off, so there is nothing to move",
            "It starts on any server that reaches its disks: 'basin vm start' chooses one with \
             room. Disks that only one server reaches keep it there.",
        ),
        _ => (
            "off, and disks move only along with a VM that runs",
            "Start it, then move it with --storage.",
        ),
    };
    problems::wrong_state("vm", name, is, advice)
}

/// The server to go to.
fn target(moving: &MovingVm, wish: &Wish, view: &View<'_>) -> Result<HostId, Problem> {
    let (mut sites, mut stores) = (view.sites(), view.stores());
    count_in_flight(&mut sites, &mut stores, &view.in_flight());
    let name = &moving.name;
    let server = |host: HostId| {
        let record = view.snapshot.hosts.get(&host);
        record.map_or_else(|| host.to_string(), |h| h.value.meta.name.to_string())
    };
    let Some(source) = sites.iter().find(|site| site.host == moving.on) else {
        let why = format!("away from {}: it has not reported yet", server(moving.on));
        return Err(problems::cannot_move(name, why, "See 'basin host list'."));
    };
    if let Some(to) = wish.to {
        let Some(site) = sites.iter().find(|site| site.host == to) else {
            let why = format!("to {}: it has not reported yet", server(to));
            return Err(problems::cannot_move(name, why, "See 'basin host list'."));
        };
        if to == moving.on && wish.storage != Storage::Stay {
            let why =
                format!("to {}: it is there already, and its disks move only along", site.name);
            return Err(problems::cannot_move(name, why, "Name another server."));
        }
        let found = check(moving, source, site, &stores, &wish.storage);
        if found.is_empty() {
            return Ok(to);
        }
        let why = format!("to {}: {}", site.name, sentences(&found));
        return Err(problems::cannot_move(name, why, advice(&found)));
    }
    let choice = choose_target(moving, &sites, &stores, &wish.storage);
    if let Some(to) = choice.chosen {
        return Ok(to);
    }
    let mut prevented = Vec::new();
    for (server, why) in choice.others {
        if let PassedOver::Obstacles(found) = why {
            prevented.push((server, found));
        }
    }
    Err(nowhere(name, prevented))
}

/// What holds for every server is said once.
fn nowhere(name: &str, prevented: Vec<(String, Vec<Obstacle>)>) -> Problem {
    let Some((_, first)) = prevented.first() else {
        let advice = "Let another server join: 'basin token create --join'.";
        return problems::cannot_move(name, "anywhere: there is no other server", advice);
    };
    let in_all = |o: &&Obstacle| prevented.iter().all(|(_, found)| found.contains(o));
    let everywhere: Vec<Obstacle> = first.iter().filter(in_all).cloned().collect();
    let mut parts = Vec::new();
    if !everywhere.is_empty() {
        parts.push(format!("anywhere: {}", sentences(&everywhere)));
    }
    for (server, found) in &prevented {
        let rest: Vec<Obstacle> =
            found.iter().filter(|o| !everywhere.contains(o)).cloned().collect();
        if !rest.is_empty() {
            parts.push(format!("to {server}: {}", sentences(&rest)));
        }
    }
    let all: Vec<Obstacle> = prevented.iter().flat_map(|(_, found)| found.clone()).collect();
    problems::cannot_move(name, parts.join("; "), advice(&all))
}

fn sentences(found: &[Obstacle]) -> String {
    found.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// What to do about each, once.
fn advice(found: &[Obstacle]) -> String {
    let mut said = BTreeSet::new();
    let fresh = found.iter().map(Obstacle::advice).filter(|advice| said.insert(*advice));
    fresh.collect::<Vec<_>>().join(" ")
}

//! Pure. Emptying servers for maintenance: which moves to start now, and what cannot move.
//!
//! Looked at again whenever a move ends: each answer goes from what is under way to the
//! next moves within the limits. Nothing is remembered between two answers.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use basin_model::{Bytes, DatastoreId, HostId, VmId, VolumeId};

use crate::movable::{
    Activity, How, InFlight, MovingVm, Obstacle, Site, Storage, Stores, check, count_in_flight,
};
use crate::place::fuller;

/// How many moves may be under way at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Away from one server.
    pub per_source: usize,
    /// To one server.
    pub per_target: usize,
    pub per_cluster: usize,
}

impl Default for Limits {
    /// Two fill a link, with one in its last round while the other copies. More share
    /// the same link, so that each takes longer and dirties more meanwhile.
    fn default() -> Self {
        Limits { per_source: 2, per_target: 2, per_cluster: 16 }
    }
}

/// How a server is emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// Disks that only it reaches move along.
    pub move_local_disks: bool,
}

/// Everything that matters now.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// All servers. What is in flight is *not* counted in them.
    pub sites: Vec<Site>,
    pub stores: Stores,
    /// At least those of the servers to empty.
    pub vms: Vec<MovingVm>,
    /// Every move under way in the cluster, whatever for.
    pub in_flight: Vec<InFlight>,
    /// The servers to empty.
    pub drains: BTreeMap<HostId, Policy>,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    pub start: Vec<Start>,
    /// They can move, and wait for moves under way to end.
    pub waiting: Vec<VmId>,
    /// They cannot move.
    pub stuck: Vec<Stuck>,
    /// Servers without an active VM, and nothing under way.
    pub empty: Vec<HostId>,
}

/// A move to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    pub vm: VmId,
    pub from: HostId,
    pub to: HostId,
    /// Cold with [`Storage::Stay`]: only the record changes.
    pub how: How,
    pub storage: Storage,
}

/// A VM that cannot move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    pub vm: VmId,
    pub name: String,
    pub on: HostId,
    /// It keeps its server from being empty; a VM that is off does not.
    pub blocks: bool,
    /// What prevents it, wherever it went.
    pub everywhere: Vec<Obstacle>,
    /// What else prevents it, by server.
    pub by_server: Vec<(String, Vec<Obstacle>)>,
}

impl Stuck {
    /// One sentence a reason.
    pub fn reasons(&self) -> Vec<String> {
        let everywhere = self.everywhere.iter().map(ToString::to_string);
        let by_server = self.by_server.iter().flat_map(|(_, found)| found);
        let mut reasons: Vec<String> =
            everywhere.chain(by_server.map(ToString::to_string)).collect();
        if reasons.is_empty() {
            reasons.push("there is no other server".to_owned());
        }
        reasons
    }

    /// Worth waiting for: every obstacle on some server goes away by itself.
    pub fn passes(&self) -> bool {
        let pass = |found: &[Obstacle]| found.iter().all(Obstacle::passes);
        let somewhere = self.by_server.is_empty() && !self.everywhere.is_empty();
        pass(&self.everywhere) && (somewhere || self.by_server.iter().any(|(_, found)| pass(found)))
    }
}

/// The moves to start now.
pub fn plan(snapshot: &Snapshot, limits: &Limits) -> Plan {
    let mut round = Round::new(snapshot, *limits);
    let mut vms: Vec<&MovingVm> = snapshot
        .vms
        .iter()
        .filter(|vm| snapshot.drains.contains_key(&vm.on) && !round.moves(vm.vm))
        .collect();
    // The largest first: the small ones find room between them.
    vms.sort_by(|a, b| b.memory.cmp(&a.memory).then(a.vm.cmp(&b.vm)));
    let mut plan = Plan::default();
    for vm in vms {
        round.place(vm, &mut plan);
    }
    let busy: BTreeSet<HostId> = {
        let active = snapshot.vms.iter().filter(|vm| vm.activity.is_active()).map(|vm| vm.on);
        let ends = |f: &InFlight| [f.from, f.to];
        active.chain(snapshot.in_flight.iter().flat_map(ends)).collect()
    };
    plan.empty = snapshot.drains.keys().copied().filter(|host| !busy.contains(host)).collect();
    plan
}

/// One planning, with what it has decided so far counted like what was under way before.
struct Round<'a> {
    snapshot: &'a Snapshot,
    limits: Limits,
    sites: Vec<Site>,
    stores: Stores,
    in_flight: Vec<InFlight>,
}

/// Where a VM can go, and how its disks do.
struct Place {
    site: usize,
    storage: Storage,
}

impl<'a> Round<'a> {
    fn new(snapshot: &'a Snapshot, limits: Limits) -> Round<'a> {
        let (mut sites, mut stores) = (snapshot.sites.clone(), snapshot.stores.clone());
        for site in &mut sites {
            site.draining |= snapshot.drains.contains_key(&site.host);
        }
        let in_flight = snapshot.in_flight.clone();
        count_in_flight(&mut sites, &mut stores, &in_flight);
        Round { snapshot, limits, sites, stores, in_flight }
    }

    fn moves(&self, vm: VmId) -> bool {
        self.in_flight.iter().any(|flight| flight.vm == vm)
    }

    fn place(&mut self, vm: &MovingVm, plan: &mut Plan) {
        let policy = self.snapshot.drains.get(&vm.on).copied().unwrap_or_default();
        let Some(source) = self.sites.iter().find(|site| site.host == vm.on).cloned() else {
            return;
        };
        let mut options = Vec::new();
        let mut prevented = Vec::new();
        for (n, site) in self.sites.iter().enumerate().filter(|(_, s)| s.host != vm.on) {
            let storage = self.storage(vm, site, policy);
            let found = check(vm, &source, site, &self.stores, &storage);
            match found.is_empty() {
                true => options.push(Place { site: n, storage }),
                // Not worth a line each: nobody expects VMs to go there.
                false if site.draining => {}
                false => prevented.push((site.name.clone(), found)),
            }
        }
        if options.is_empty() {
            plan.stuck.push(stuck(vm, prevented));
            return;
        }
        let within = |option: &&Place| {
            let record_only = vm.how() == How::Cold && option.storage == Storage::Stay;
            record_only || self.room_for_one_more(vm.on, self.sites[option.site].host)
        };
        let best = options.iter().filter(within).min_by(|a, b| {
            let [a, b] = [a, b].map(|o| (moved(&o.storage), self.sites[o.site].candidate()));
            // Better a fuller server than a disk that is copied for it.
            a.0.cmp(&b.0).then(fuller(&a.1, &b.1))
        });
        let Some(best) = best else {
            plan.waiting.push(vm.vm);
            return;
        };
        let to = self.sites[best.site].host;
        let storage = best.storage.clone();
        let start = Start { vm: vm.vm, from: vm.on, to, how: vm.how(), storage };
        self.begin(vm, &start);
        plan.start.push(start);
    }

    fn begin(&mut self, vm: &MovingVm, start: &Start) {
        if start.how == How::Cold && start.storage == Storage::Stay {
            return;
        }
        let flight = vm.in_flight(start.to, &start.storage);
        count_in_flight(&mut self.sites, &mut self.stores, std::slice::from_ref(&flight));
        self.in_flight.push(flight);
    }

    fn room_for_one_more(&self, from: HostId, to: HostId) -> bool {
        let count =
            |is: &dyn Fn(&InFlight) -> bool| self.in_flight.iter().filter(|f| is(f)).count();
        self.in_flight.len() < self.limits.per_cluster
            && count(&|f| f.from == from) < self.limits.per_source
            && count(&|f| f.to == to) < self.limits.per_target
    }

    /// Disks that the target does not reach go to the roomiest datastore it does.
    fn storage(&self, vm: &MovingVm, target: &Site, policy: Policy) -> Storage {
        let mut each: BTreeMap<VolumeId, _> = BTreeMap::new();
        if !policy.move_local_disks {
            return Storage::Stay;
        }
        let reached = |id: &DatastoreId| !target.without_datastores.contains_key(id);
        let stores = self.stores.iter().filter(|(id, _)| reached(id));
        let mut free: BTreeMap<DatastoreId, Bytes> =
            stores.filter_map(|(id, store)| Some((*id, store.free?))).collect();
        for disk in &vm.disks {
            if std::iter::once(&disk.datastore).chain(&disk.reads_through).all(reached) {
                continue;
            }
            let roomiest = free.iter().max_by(|a, b| a.1.cmp(b.1).then(b.0.cmp(a.0)));
            let Some(to) = roomiest.map(|(id, _)| *id) else { continue };
            if let Some(left) = free.get_mut(&to) {
                *left = left.saturating_sub(disk.needs);
            }
            each.insert(disk.volume, to);
        }
        if each.is_empty() { Storage::Stay } else { Storage::Each(each) }
    }
}

/// How many disks are copied.
fn moved(storage: &Storage) -> usize {
    match storage {
        Storage::Each(each) => each.len(),
        Storage::Stay | Storage::All(_) => 0,
    }
}

fn stuck(vm: &MovingVm, prevented: Vec<(String, Vec<Obstacle>)>) -> Stuck {
    let first = prevented.first().map(|(_, found)| found.clone()).unwrap_or_default();
    let in_all = |o: &Obstacle| prevented.iter().all(|(_, found)| found.contains(o));
    let everywhere: Vec<Obstacle> = first.into_iter().filter(in_all).collect();
    let by_server = prevented
        .into_iter()
        .map(|(name, mut found)| {
            found.retain(|o| !everywhere.contains(o));
            (name, found)
        })
        .filter(|(_, found)| !found.is_empty())
        .collect();
    Stuck {
        vm: vm.vm,
        name: vm.name.clone(),
        on: vm.on,
        blocks: vm.activity != Activity::Off,
        everywhere,
        by_server,
    }
}

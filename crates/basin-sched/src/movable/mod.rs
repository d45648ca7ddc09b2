//! Pure. Whether a VM can move to a server, and everything that prevents it.
//!
//! Never only the first obstacle: whoever removes one should not find the next by
//! trying. A VM that is off moves as well; then nothing of the guest has to fit.

mod facts;
mod guest;
mod obstacle;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;

use basin_model::{Bytes, DatastoreId, HostId};

pub use facts::{
    Activity, InFlight, MovingDisk, MovingVm, Site, Storage, Store, Stores, count_in_flight,
};
pub use obstacle::Obstacle;

use crate::place::fuller;

/// How a VM moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// While it runs.
    Live,
    /// While it is off.
    Cold,
}

impl MovingVm {
    pub fn how(&self) -> How {
        match self.activity {
            Activity::Off => How::Cold,
            _ => How::Live,
        }
    }

    /// What the move takes, for whoever counts moves under way.
    pub fn in_flight(&self, to: HostId, storage: &Storage) -> InFlight {
        let memory = self.activity.is_active().then_some(self.memory);
        let space = space_needed(self, storage).into_iter().collect();
        InFlight { vm: self.vm, from: self.on, to, memory, space }
    }
}

/// Everything that prevents the move; empty: it can be. `source` and `target` are the
/// same server when only disks move. What is [in flight](count_in_flight) is counted.
pub fn check(
    vm: &MovingVm,
    source: &Site,
    target: &Site,
    stores: &Stores,
    storage: &Storage,
) -> Vec<Obstacle> {
    let mut found = guest::itself(vm);
    if let Some(why) = &source.silent
        && (vm.how() == How::Live || vm.disks.iter().any(|d| storage.moves(d).is_some()))
    {
        found.push(Obstacle::Silent { server: source.name.clone(), why: why.clone() });
    }
    if source.host == target.host {
        if !vm.disks.iter().any(|disk| storage.moves(disk).is_some()) {
            found.push(Obstacle::AlreadyThere { server: target.name.clone() });
        }
    } else {
        server(vm, source, target, &mut found);
        if vm.how() == How::Live {
            guest::hardware(vm, source, target, &mut found);
            room(vm, target, &mut found);
        }
        let networks = vm.networks.iter();
        found.extend(networks.filter_map(|(id, name)| {
            let why = target.without_networks.get(id)?.clone();
            let (network, server) = (name.clone(), target.name.clone());
            Some(Obstacle::NetworkMissing { network, server, why })
        }));
    }
    disks(vm, target, stores, storage, &mut found);
    found
}

/// The target as a server.
fn server(vm: &MovingVm, source: &Site, target: &Site, found: &mut Vec<Obstacle>) {
    let server = || target.name.clone();
    if let Some(why) = &target.silent {
        found.push(Obstacle::Silent { server: server(), why: why.clone() });
    }
    if let Some(why) = &target.unusable {
        found.push(Obstacle::Unusable { server: server(), why: why.clone() });
    }
    if target.draining {
        found.push(Obstacle::Draining { server: server() });
    }
    if vm.how() == How::Live && !adjacent(&source.daemon, &target.daemon) {
        let (there, here) = (target.daemon.clone(), source.daemon.clone());
        found.push(Obstacle::DaemonTooFar { server: server(), there, here });
    }
}

/// At most one release apart: what servers of a cluster may be while it is upgraded.
/// What is no version is let pass.
pub fn adjacent(one: &str, other: &str) -> bool {
    let release = |version: &str| {
        let mut numbers = version.split('.').map(|n| n.parse::<u32>().ok());
        Some((numbers.next()??, numbers.next()??))
    };
    match (release(one), release(other)) {
        (Some((a, b)), Some((c, d))) => a == c && b.abs_diff(d) <= 1,
        _ => true,
    }
}

fn room(vm: &MovingVm, target: &Site, found: &mut Vec<Obstacle>) {
    let server = || target.name.clone();
    let there = target.capacity.cpus;
    if vm.vcpus > there {
        found.push(Obstacle::TooFewCpus { server: server(), needed: vm.vcpus, there });
    }
    let (needed, free) = (target.takes(vm.memory), target.free());
    if needed > free {
        let there = target.capacity.memory;
        found.push(Obstacle::TooLittleMemory { server: server(), needed, free, there });
    }
}

fn disks(
    vm: &MovingVm,
    target: &Site,
    stores: &Stores,
    storage: &Storage,
    found: &mut Vec<Obstacle>,
) {
    let name = |id: &DatastoreId| stores.get(id).map_or(id.to_string(), |s| s.name.clone());
    let server = || target.name.clone();
    for disk in vm.disks.iter().filter(|disk| storage.moves(disk).is_none()) {
        for id in std::iter::once(&disk.datastore).chain(&disk.reads_through) {
            let Some(why) = target.without_datastores.get(id) else { continue };
            let local = stores.get(id).and_then(|store| store.local_to);
            let (disk, datastore, why) = (disk.name.clone(), name(id), why.clone());
            found.push(match local {
                Some(host) if host != target.host => Obstacle::LocalDisk { disk, datastore },
                _ => Obstacle::DatastoreNotReached { datastore, server: server(), why },
            });
        }
    }
    for disk in vm.disks.iter().filter(|disk| storage.moves(disk).is_some()) {
        if let Some(why) = &disk.fixed {
            found.push(Obstacle::FixedDisk { disk: disk.name.clone(), why: why.clone() });
        }
    }
    for (to, needed) in space_needed(vm, storage) {
        let datastore = name(&to);
        let Some(store) = stores.get(&to) else {
            found.push(Obstacle::NoSuchDatastore { datastore });
            continue;
        };
        if let Some(why) = target.without_datastores.get(&to) {
            let why = why.clone();
            found.push(Obstacle::DatastoreNotReached { datastore, server: server(), why });
            continue;
        }
        match store.free {
            None => found.push(Obstacle::SpaceUnknown { datastore }),
            Some(free) if free < needed => {
                found.push(Obstacle::TooLittleSpace { datastore, needed, free });
            }
            Some(_) => {}
        }
    }
}

/// What the disks that move take, by datastore.
fn space_needed(vm: &MovingVm, storage: &Storage) -> BTreeMap<DatastoreId, Bytes> {
    let mut needed: BTreeMap<DatastoreId, Bytes> = BTreeMap::new();
    for disk in &vm.disks {
        if let Some(to) = storage.moves(disk) {
            *needed.entry(to).or_default() += disk.needs;
        }
    }
    needed
}

/// Which server a VM goes to, and what was said of the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub chosen: Option<HostId>,
    /// In the order given, without the server that has the VM.
    pub others: Vec<(String, PassedOver)>,
}

/// Why a server was not chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PassedOver {
    Obstacles(Vec<Obstacle>),
    /// It could be, but another one has more room.
    FullerThan {
        chosen: String,
    },
}

/// Chooses the server with the largest free share of its memory among those that
/// nothing prevents. `source` is one of `sites`.
pub fn choose_target(vm: &MovingVm, sites: &[Site], stores: &Stores, storage: &Storage) -> Choice {
    let Some(source) = sites.iter().find(|site| site.host == vm.on) else {
        return Choice { chosen: None, others: Vec::new() };
    };
    let judged: Vec<(&Site, Vec<Obstacle>)> = sites
        .iter()
        .filter(|site| site.host != vm.on)
        .map(|site| (site, check(vm, source, site, stores, storage)))
        .collect();
    let free = judged.iter().filter(|(_, found)| found.is_empty()).map(|(site, _)| *site);
    let chosen = free.min_by(|a, b| fuller(&a.candidate(), &b.candidate()));
    let others = judged
        .into_iter()
        .filter(|(site, _)| chosen.is_none_or(|winner| winner.host != site.host))
        .map(|(site, found)| {
            let why = match chosen {
                Some(winner) if found.is_empty() => {
                    PassedOver::FullerThan { chosen: winner.name.clone() }
                }
                _ => PassedOver::Obstacles(found),
            };
            (site.name.clone(), why)
        })
        .collect();
    Choice { chosen: chosen.map(|site| site.host), others }
}

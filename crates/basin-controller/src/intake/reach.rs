//! Pure. Which servers reach a datastore, and which of them is asked to work in it.

use std::collections::{BTreeMap, BTreeSet};

use basin_model::datastore::{Datastore, DatastoreState, Sharing};
use basin_model::task::Problem;
use basin_model::vm::Vm;
use basin_model::volume::{Volume, VolumeSource};
use basin_model::{DatastoreId, HostId, Name, VolumeId};

use super::vm_patch::is_stopped;
use crate::app::inventory::Snapshot;
use crate::app::problems;

/// Where a VM's disks can be used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reach {
    pub hosts: BTreeSet<HostId>,
    /// Every other server, and why not there.
    pub cut_off: BTreeMap<HostId, String>,
}

/// Whether what is not in order today counts as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Now,
    /// A file system that is not mounted may be so tomorrow.
    Ever,
}

/// The servers that reach all of a VM's disks, with what those fall through to.
/// Images are not looked at: every server can fetch them.
pub fn reachable_from(vm: &Vm, when: When, snapshot: &Snapshot) -> Reach {
    let disks = vm.spec.disks.iter().map(|d| d.volume);
    let datastores: BTreeSet<DatastoreId> = disks.flat_map(|v| under(v, snapshot)).collect();
    let mut reach = Reach::default();
    for host in snapshot.hosts.keys() {
        match datastores.iter().find_map(|d| why_not(*d, *host, when, snapshot)) {
            None => drop(reach.hosts.insert(*host)),
            Some(why) => drop(reach.cut_off.insert(*host, why)),
        }
    }
    reach
}

/// The datastores of a volume and of the volumes below it.
fn under(volume: VolumeId, snapshot: &Snapshot) -> Vec<DatastoreId> {
    let mut found = Vec::new();
    let mut next = Some(volume);
    while let Some(volume) = next.take().and_then(|id| snapshot.volumes.get(&id)) {
        found.push(volume.value.datastore);
        if let VolumeSource::LinkedVolume { volume: below } = volume.value.source
            && found.len() <= super::chain::MAX_DEPTH
        {
            next = Some(below);
        }
    }
    found
}

/// Why a server does not reach a datastore; none if it does.
pub fn why_not(
    datastore: DatastoreId,
    host: HostId,
    when: When,
    snapshot: &Snapshot,
) -> Option<String> {
    let Some(record) = snapshot.datastores.get(&datastore) else {
        return Some(format!("datastore {datastore} is no more"));
    };
    let datastore = &record.value;
    let name = &datastore.meta.name;
    match datastore.sharing {
        Sharing::Local(owner) if owner != host => {
            let owner = host_name(owner, snapshot);
            return Some(format!("datastore '{name}' is on server {owner} alone"));
        }
        _ if when == When::Ever => return None,
        _ => {}
    }
    if let Some(problem) = trouble(datastore, host, snapshot) {
        return Some(format!("it does not reach datastore '{name}': {problem}"));
    }
    None
}

/// What keeps a server from a datastore that it is meant to have.
pub fn trouble(datastore: &Datastore, host: HostId, snapshot: &Snapshot) -> Option<String> {
    if datastore.state == DatastoreState::Preparing {
        return Some("it is still being made".to_owned());
    }
    let status = snapshot.host_statuses.get(&host).map(|s| &s.value);
    let subject = format!("datastore/{}", datastore.id);
    let condition = status.and_then(|s| s.conditions.iter().find(|c| c.subject == subject));
    if let Some(condition) = condition {
        return Some(condition.problem.detail.clone());
    }
    let proven = status.is_some_and(|s| s.shared_datastores.contains(&datastore.id));
    (datastore.sharing.is_shared() && !proven)
        .then(|| "it has not been checked yet that it is the same storage there".to_owned())
}

/// The server that is asked to work in all of these datastores: the preferred one
/// if it reaches them. A local datastore's server is asked in any case, and says
/// itself what is wrong.
pub fn choose(
    datastores: &[DatastoreId],
    preferred: HostId,
    snapshot: &Snapshot,
) -> Result<HostId, Problem> {
    for id in datastores {
        if !snapshot.datastores.contains_key(id) {
            return Err(super::resolve::not_there("datastore", id));
        }
    }
    let owners: BTreeSet<HostId> = datastores.iter().filter_map(|d| owner(*d, snapshot)).collect();
    let shared = |d: &&DatastoreId| owner(**d, snapshot).is_none();
    let why = |host: HostId| {
        let elsewhere = datastores.iter().find_map(|d| why_not(*d, host, When::Ever, snapshot));
        let now = || {
            let mut shared = datastores.iter().filter(shared);
            shared.find_map(|d| why_not(*d, host, When::Now, snapshot))
        };
        elsewhere.or_else(now)
    };
    let mut candidates = vec![preferred];
    candidates.extend(&owners);
    candidates.extend(snapshot.hosts.keys());
    if let Some(host) = candidates.iter().find(|host| why(**host).is_none()) {
        return Ok(*host);
    }
    let hosts = snapshot.hosts.keys();
    let reasons: Vec<String> = hosts
        .filter_map(|host| Some(format!("{}: {}", host_name(*host, snapshot), why(*host)?)))
        .collect();
    Err(problems::no_server_reaches(&reasons))
}

/// As [`choose`], for a volume: where a VM runs on it, that server and no other.
pub fn choose_for(
    volume: &Volume,
    preferred: HostId,
    snapshot: &Snapshot,
) -> Result<HostId, Problem> {
    let vm = snapshot.attachments.get(&volume.id).and_then(|vm| snapshot.vms.get(vm));
    let running = vm.filter(|vm| !is_stopped(&vm.value, snapshot));
    match running.and_then(|vm| vm.value.placement) {
        Some(placement) => Ok(placement.host),
        None => choose(&[volume.datastore], preferred, snapshot),
    }
}

fn owner(datastore: DatastoreId, snapshot: &Snapshot) -> Option<HostId> {
    match snapshot.datastores.get(&datastore)?.value.sharing {
        Sharing::Local(host) => Some(host),
        Sharing::Shared { .. } => None,
    }
}

fn host_name(host: HostId, snapshot: &Snapshot) -> String {
    let name = snapshot.hosts.get(&host).map(|h| &h.value.meta.name);
    name.map_or_else(|| host.to_string(), Name::to_string)
}

#[cfg(test)]
#[path = "reach_tests.rs"]
mod tests;

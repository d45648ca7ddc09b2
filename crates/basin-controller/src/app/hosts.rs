//! Servers.

use std::time::{Duration, Instant};

use basin_api::cluster::DrainRequest;
use basin_api::host::TrunkSet;
use basin_api::reference::MetaPatch;
use basin_model::HostId;
use basin_model::cluster::RemovedHost;
use basin_model::datastore::Sharing;
use basin_model::host::{Drain, Host};
use basin_model::keys::{self, Kind};
use basin_model::task::Problem;
use basin_model::vm::{Power, PowerOff};
use basin_store::Revision;
use basin_store::records::{TxnBuilder, Versioned};
use jiff::Timestamp;

use super::inventory::Snapshot;
use super::{App, problems, unchanged};
use crate::cluster::voters::Leaves;
use crate::intake::vm_patch::is_stopped;
use crate::intake::{meta, trunk};

impl App {
    pub async fn patch_host(
        &self,
        reference: &str,
        patch: &MetaPatch,
        expected: Option<Revision>,
    ) -> Result<HostId, Problem> {
        self.commit(|snapshot, _| {
            let old = snapshot.host(reference)?;
            unchanged(old, expected)?;
            let mut new = old.value.clone();
            let kind = (Kind::Host, new.id);
            let (meta, txn) = meta::change(kind, &snapshot.hosts, &old.value.meta, patch.into())?;
            new.meta = meta;
            Ok((new.id, txn.replace(old, &new)))
        })
        .await
    }

    /// From now on the server takes no VM, and those that run there move away.
    pub async fn drain_host(&self, reference: &str, how: &DrainRequest) -> Result<HostId, Problem> {
        self.commit(|snapshot, mint| {
            let old = snapshot.host(reference)?;
            let since = old.value.drain.map_or(mint.now, |drain| drain.since);
            let drain = Some(Drain { since, move_local_disks: how.move_local_disks });
            let new = Host { drain, ..old.value.clone() };
            Ok((new.id, TxnBuilder::new().replace(old, &new)))
        })
        .await
    }

    /// It takes VMs again. Those that moved away stay where they are.
    pub async fn undrain_host(&self, reference: &str) -> Result<HostId, Problem> {
        self.commit(|snapshot, _| {
            let old = snapshot.host(reference)?;
            let new = Host { drain: None, ..old.value.clone() };
            Ok((new.id, TxnBuilder::new().replace(old, &new)))
        })
        .await
    }

    /// Names the interface by which a server has VLANs; its daemon follows.
    pub async fn set_trunk(&self, reference: &str, trunk: &TrunkSet) -> Result<HostId, Problem> {
        self.commit(|snapshot, _| {
            let old = snapshot.host(reference)?;
            let new = trunk::set(&old.value, trunk)?;
            Ok((new.id, TxnBuilder::new().replace(old, &new)))
        })
        .await
    }

    pub async fn unset_trunk(
        &self,
        reference: &str,
        untagged: Option<u16>,
    ) -> Result<HostId, Problem> {
        self.commit(|snapshot, _| {
            let old = snapshot.host(reference)?;
            let new = trunk::unset(&old.value, untagged, snapshot)?;
            Ok((new.id, TxnBuilder::new().replace(old, &new)))
        })
        .await
    }

    /// Shuts a server out for good. `dead`: it is not coming back, whatever is on it.
    pub async fn remove_host(&self, reference: &str, dead: bool) -> Result<HostId, Problem> {
        let id = may_leave(&self.inventory().read(), reference, dead)?.value.id;
        // Nobody takes the vote of one that is dead over: it is taken away afterwards.
        let _leaves = match dead {
            true => None,
            false => Some(self.without_vote(id).await?),
        };
        self.commit(|snapshot, mint| {
            let host = may_leave(snapshot, &id.to_string(), dead)?;
            Ok((id, removal(host, snapshot, mint.now)))
        })
        .await
    }

    /// Waits until the server keeps no part of the state any more: its certificate is
    /// worth nothing once it is removed, and its member of etcd could tell no other
    /// what it alone may know.
    async fn without_vote(&self, id: HostId) -> Result<Leaves, Problem> {
        let (leaves, since) = (self.leaving.leaves(id), Instant::now());
        let gone = async {
            // By a list that is newer: it may have got its vote a moment ago.
            while !is_without_vote(&self.inventory().read(), id, since) {
                tokio::time::sleep(VOTE_LOOKED_FOR_EVERY).await;
            }
        };
        if tokio::time::timeout(VOTE_GIVEN_UP_WITHIN, gone).await.is_ok() {
            return Ok(leaves);
        }
        let snapshot = self.inventory().read();
        let host = snapshot.host(&id.to_string())?;
        let advice = "See that the servers that keep the state are up ('basin cluster show'), and \
                      try again. If this server is lost, stop its daemon and use --dead.";
        Err(kept(host, "it keeps a part of the cluster's state that no other took over", advice))
    }
}

/// A member of etcd is added, catches up and gets its vote before another goes.
const VOTE_GIVEN_UP_WITHIN: Duration = Duration::from_secs(45);
const VOTE_LOOKED_FOR_EVERY: Duration = Duration::from_millis(200);

fn is_without_vote(snapshot: &Snapshot, id: HostId, since: Instant) -> bool {
    match snapshot.voters_seen {
        Some(seen) => seen > since && !snapshot.voters.contains_key(&id),
        // etcd is not the cluster's own.
        None => true,
    }
}

fn may_leave<'a>(
    snapshot: &'a Snapshot,
    reference: &str,
    dead: bool,
) -> Result<&'a Versioned<Host>, Problem> {
    let host = snapshot.host(reference)?;
    if snapshot.cluster.is_none() {
        return Err(problems::no_cluster());
    }
    if snapshot.hosts.len() == 1 {
        return Err(kept(host, "it is the only server", "Add another one first."));
    }
    may_go(host, snapshot, dead).map(|()| host)
}

/// What would be lost or left behind.
fn may_go(host: &Versioned<Host>, snapshot: &Snapshot, dead: bool) -> Result<(), Problem> {
    let id = host.value.id;
    if dead {
        if snapshot.alive.contains_key(&id) {
            let advice = "Leave out --dead; or stop its daemon, if it is really to be given up.";
            return Err(kept(host, "it is alive", advice));
        }
        return Ok(());
    }
    let on = snapshot.vms.values().map(|vm| &vm.value);
    let on = on.filter(|vm| vm.placement.is_some_and(|p| p.host == id));
    let running: Vec<&str> =
        on.filter(|vm| !is_stopped(vm, snapshot)).map(|vm| vm.meta.name.as_str()).collect();
    if !running.is_empty() {
        let why = format!("VMs run there: {}", running.join(", "));
        return Err(kept(host, &why, "Empty it first: 'basin host drain'."));
    }
    let own = snapshot.datastores.values().map(|d| &d.value);
    for datastore in own.filter(|d| d.sharing == Sharing::Local(id)) {
        let volumes = snapshot.volumes.values().filter(|v| v.value.datastore == datastore.id);
        let images = snapshot.images.values().filter(|i| i.value.datastore == datastore.id);
        let (volumes, images) = (volumes.count(), images.count());
        if volumes + images > 0 {
            let name = &datastore.meta.name;
            let why = format!(
                "its datastore '{name}', which no other server reaches, holds {volumes} volumes \
                 and {images} images"
            );
            let advice = "Move or delete them first; or, if the server is lost, stop its daemon \
                          and use --dead.";
            return Err(kept(host, &why, advice));
        }
    }
    Ok(())
}

fn kept(host: &Versioned<Host>, why: &str, advice: &str) -> Problem {
    Problem {
        code: "in-use".to_owned(),
        detail: format!("Server '{}' cannot be removed: {why}.", host.value.meta.name),
        advice: advice.to_owned(),
    }
}

/// The server and all that is its own. What else has become of its disks stays on
/// record: somebody may bring the machine back.
fn removal(host: &Versioned<Host>, snapshot: &Snapshot, now: Timestamp) -> TxnBuilder {
    let (id, name) = (host.value.id, host.value.meta.name.clone());
    let removed = RemovedHost { host: id, name: name.to_string(), at: now };
    let mut txn = TxnBuilder::new()
        .require_unchanged(host)
        .delete(keys::host(id))
        .delete(keys::host_status(id))
        .delete(Kind::Host.name(&name))
        .put(keys::removed_host(id), &removed);
    let own = snapshot.datastores.values().filter(|d| d.value.sharing == Sharing::Local(id));
    for datastore in own {
        let holds = snapshot.volumes.values().any(|v| v.value.datastore == datastore.value.id)
            || snapshot.images.values().any(|i| i.value.datastore == datastore.value.id);
        if !holds {
            txn = txn
                .require_unchanged(datastore)
                .delete(keys::datastore(datastore.value.id))
                .delete(Kind::Datastore.name(&datastore.value.meta.name));
        }
    }
    // What ran there was lost with it, and may start elsewhere. The placement stays, for
    // the next one to have a higher generation.
    for vm in snapshot.vms.values() {
        let there = vm.value.placement.is_some_and(|p| p.host == id);
        if there && !is_stopped(&vm.value, snapshot) {
            let mut off = vm.value.clone();
            off.run.power = Power::Off { how: PowerOff::Now };
            txn = txn.replace(vm, &off).delete(keys::vm_status(vm.value.id));
        }
    }
    txn
}

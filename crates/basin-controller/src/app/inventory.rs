//! Everything the store knows, in memory, kept current by one watch.
//!
//! Reads of the API are answered from here: no query, no decoding, and a list of
//! thousands costs what its JSON costs. Writes never trust it: each carries the
//! revisions it was decided from, and the store refuses what has moved on.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use basin_model::cluster::{Alive, ClusterRecord, Issued, JoinToken, Leader, RemovedHost};
use basin_model::datastore::Datastore;
use basin_model::host::{Host, HostStatus};
use basin_model::image::Image;
use basin_model::keys::{self, Kind, ROOT};
use basin_model::network::Network;
use basin_model::task::Task;
use basin_model::vm::{Vm, VmStatus};
use basin_model::volume::Volume;
use basin_model::{DatastoreId, HostId, ImageId, NetworkId, TaskId, TokenId, VmId, VolumeId};
use basin_node::etcd::Voters;
use basin_store::records::{self, Versioned};
use basin_store::{Change, Entry, Revision, Store, StoreError};
use futures::StreamExt;
use tokio::sync::watch;
use tracing::{error, warn};

use super::token::Token;

/// A table of records by id.
pub type Table<I, T> = BTreeMap<I, Versioned<T>>;

/// All records at one revision.
#[derive(Default)]
pub struct Snapshot {
    pub revision: Revision,
    /// Of the last record that changed. Whoever follows the store comes to it; not always
    /// to `revision`, where the store holds more than Basin's records.
    pub changed: Revision,
    pub vms: Table<VmId, Vm>,
    pub vm_statuses: Table<VmId, VmStatus>,
    pub volumes: Table<VolumeId, Volume>,
    pub images: Table<ImageId, Image>,
    pub datastores: Table<DatastoreId, Datastore>,
    pub networks: Table<NetworkId, Network>,
    pub hosts: Table<HostId, Host>,
    pub host_statuses: Table<HostId, HostStatus>,
    pub tasks: Table<TaskId, Task>,
    pub tokens: Table<TokenId, Token>,
    pub alive: Table<HostId, Alive>,
    pub join_tokens: Table<TokenId, JoinToken>,
    pub removed_hosts: Table<HostId, RemovedHost>,
    /// By serial number.
    pub issued: Table<String, Issued>,
    /// None while there is one server, alone.
    pub cluster: Option<ClusterRecord>,
    pub leader: Option<Leader>,
    /// Servers with a vote in the cluster's own etcd, and where it answers. No record
    /// says so but etcd's list of its members: see [`Inventory::note_voters`].
    pub voters: Voters,
    /// When that list was read; never, where etcd is not the cluster's own.
    pub voters_seen: Option<Instant>,
    /// Which VM has the volume attached.
    pub attachments: HashMap<VolumeId, VmId>,
    /// What `attachments` says of each VM, to take it back.
    disks: HashMap<VmId, Vec<VolumeId>>,
}

impl Snapshot {
    fn put(&mut self, entry: &Entry) {
        if entry.key == keys::cluster() {
            self.cluster = records::from_entry(entry).ok().map(|r: Versioned<_>| r.value);
        }
        if entry.key == keys::leader() {
            self.leader = records::from_entry(entry).ok().map(|r: Versioned<_>| r.value);
        }
        let Some((kind, id)) = Kind::parse(&entry.key) else { return };
        let result = match kind {
            Kind::Vm => put(&mut self.vms, id, entry),
            Kind::VmStatus => put(&mut self.vm_statuses, id, entry),
            Kind::Volume => put(&mut self.volumes, id, entry),
            Kind::Image => put(&mut self.images, id, entry),
            Kind::Datastore => put(&mut self.datastores, id, entry),
            Kind::Network => put(&mut self.networks, id, entry),
            Kind::Host => put(&mut self.hosts, id, entry),
            Kind::HostStatus => put(&mut self.host_statuses, id, entry),
            Kind::Task => put(&mut self.tasks, id, entry),
            Kind::Token => put(&mut self.tokens, id, entry),
            Kind::Alive => put(&mut self.alive, id, entry),
            Kind::JoinToken => put(&mut self.join_tokens, id, entry),
            Kind::RemovedHost => put(&mut self.removed_hosts, id, entry),
            Kind::Issued => put(&mut self.issued, id, entry),
            Kind::Workflow => Ok(()),
        };
        if let Err(e) = result {
            error!(key = entry.key, "a record is passed over: {e}");
        }
        if kind == Kind::Vm
            && let Ok(id) = id.parse()
        {
            self.index(id);
        }
    }

    fn delete(&mut self, key: &str) {
        if key == keys::leader() {
            self.leader = None;
        }
        let Some((kind, id)) = Kind::parse(key) else { return };
        match kind {
            Kind::Vm => {
                remove(&mut self.vms, id);
                if let Ok(id) = id.parse() {
                    self.index(id);
                }
            }
            Kind::VmStatus => remove(&mut self.vm_statuses, id),
            Kind::Volume => remove(&mut self.volumes, id),
            Kind::Image => remove(&mut self.images, id),
            Kind::Datastore => remove(&mut self.datastores, id),
            Kind::Network => remove(&mut self.networks, id),
            Kind::Host => remove(&mut self.hosts, id),
            Kind::HostStatus => remove(&mut self.host_statuses, id),
            Kind::Task => remove(&mut self.tasks, id),
            Kind::Token => remove(&mut self.tokens, id),
            Kind::Alive => remove(&mut self.alive, id),
            Kind::JoinToken => remove(&mut self.join_tokens, id),
            Kind::RemovedHost => remove(&mut self.removed_hosts, id),
            Kind::Issued => remove(&mut self.issued, id),
            Kind::Workflow => {}
        }
    }

    /// Brings the index of attachments to what the VM's record says.
    fn index(&mut self, id: VmId) {
        for volume in self.disks.remove(&id).unwrap_or_default() {
            self.attachments.remove(&volume);
        }
        if let Some(vm) = self.vms.get(&id) {
            let volumes: Vec<VolumeId> = vm.value.spec.disks.iter().map(|d| d.volume).collect();
            self.attachments.extend(volumes.iter().map(|v| (*v, id)));
            self.disks.insert(id, volumes);
        }
    }
}

fn put<I: std::str::FromStr + Ord, T: serde::de::DeserializeOwned>(
    table: &mut Table<I, T>,
    id: &str,
    entry: &Entry,
) -> Result<(), StoreError> {
    if let Ok(id) = id.parse() {
        table.insert(id, records::from_entry(entry)?);
    }
    Ok(())
}

fn remove<I: std::str::FromStr + Ord, T>(table: &mut Table<I, T>, id: &str) {
    if let Ok(id) = id.parse() {
        table.remove(&id);
    }
}

/// The inventory. Clones share it.
#[derive(Clone)]
pub struct Inventory {
    snapshot: Arc<RwLock<Snapshot>>,
    revision: watch::Receiver<Revision>,
    changed: Arc<watch::Sender<Revision>>,
}

impl Inventory {
    /// Reads everything, and follows the store from then on until dropped.
    pub async fn open(store: Arc<dyn Store>) -> Result<Inventory, StoreError> {
        let first = load(&*store).await?;
        let (sender, revision) = watch::channel(first.revision);
        let (snapshot, sender) = (Arc::new(RwLock::new(first)), Arc::new(sender));
        let changed = Arc::clone(&sender);
        let inventory = Inventory { snapshot: Arc::clone(&snapshot), revision, changed };
        tokio::spawn(async move {
            tokio::select! {
                () = follow(store, snapshot, &sender) => {}
                () = sender.closed() => {}
            }
        });
        Ok(inventory)
    }

    /// The snapshot as it is. Do not hold it across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, Snapshot> {
        self.snapshot.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits until everything up to `revision` is in: read your own writes.
    pub async fn at_least(&self, revision: Revision) {
        let mut receiver = self.revision.clone();
        // The sender lives as long as `self` does; were it gone, there is nothing to wait for.
        let _ = receiver.wait_for(|now| *now >= revision).await;
    }

    /// Waits until the records say so.
    pub async fn until(&self, holds: impl Fn(&Snapshot) -> bool) {
        let mut receiver = self.revision.clone();
        let _ = receiver.wait_for(|_| holds(&self.read())).await;
    }

    /// What etcd's list of members says now.
    pub fn note_voters(&self, voters: &Voters) {
        let mut snapshot = self.snapshot.write().unwrap_or_else(|p| p.into_inner());
        snapshot.voters_seen = Some(Instant::now());
        if snapshot.voters != *voters {
            snapshot.voters.clone_from(voters);
            drop(snapshot);
            self.changed.send_modify(|_| {});
        }
    }

    /// Woken at every change.
    pub fn changes(&self) -> watch::Receiver<Revision> {
        self.revision.clone()
    }
}

async fn load(store: &dyn Store) -> Result<Snapshot, StoreError> {
    let listing = store.list(ROOT).await?;
    let mut snapshot = Snapshot { revision: listing.revision, ..Snapshot::default() };
    for entry in &listing.entries {
        snapshot.changed = snapshot.changed.max(entry.modified);
        snapshot.put(entry);
    }
    Ok(snapshot)
}

async fn follow(
    store: Arc<dyn Store>,
    snapshot: Arc<RwLock<Snapshot>>,
    revision: &watch::Sender<Revision>,
) {
    loop {
        let from = *revision.borrow();
        match store.watch(ROOT, from).await {
            Ok(mut changes) => {
                while let Some(item) = changes.next().await {
                    match item {
                        Ok(batch) => apply(&snapshot, revision, &batch),
                        Err(e) => {
                            warn!("the watch of the store ended: {e}");
                            break;
                        }
                    }
                }
            }
            Err(e) => warn!("the store cannot be watched: {e}"),
        }
        // Whatever was missed is in a fresh list.
        match load(&*store).await {
            Ok(fresh) => {
                let now = fresh.revision;
                {
                    let mut old = snapshot.write().unwrap_or_else(|p| p.into_inner());
                    let voters = std::mem::take(&mut old.voters);
                    *old = Snapshot { voters, voters_seen: old.voters_seen, ..fresh };
                }
                revision.send_replace(now);
            }
            Err(e) => {
                warn!("the store cannot be read: {e}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

fn apply(snapshot: &RwLock<Snapshot>, revision: &watch::Sender<Revision>, batch: &[Change]) {
    let now = {
        let mut snapshot = snapshot.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        for change in batch {
            match change {
                Change::Put(entry) => {
                    snapshot.put(entry);
                    snapshot.revision = entry.modified;
                }
                Change::Delete { key, revision } => {
                    snapshot.delete(key);
                    snapshot.revision = *revision;
                }
            }
        }
        snapshot.changed = snapshot.revision;
        snapshot.revision
    };
    revision.send_replace(now);
}

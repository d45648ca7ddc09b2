//! Volumes.

use std::collections::BTreeMap;
use std::sync::Arc;

use basin_api::reference::MetaPatch;
use basin_api::volume::VolumeCreate;
use basin_model::datastore::Capacity;
use basin_model::keys::{self, Kind};
use basin_model::task::{Problem, Task};
use basin_model::volume::{Volume, VolumeState};
use basin_model::{Bytes, DatastoreId, VolumeId};
use basin_node::NodeApi;
use basin_store::Revision;
use futures::future::join_all;

use super::inventory::Snapshot;
use super::{App, holds, problems, unchanged};
use crate::intake::vm_patch::is_stopped;
use crate::intake::{self, meta, reach, space};
use crate::workflows::volume_create::VolumeCreate as CreateFlow;
use crate::workflows::volume_delete::VolumeDelete;
use crate::workflows::volume_grow::VolumeGrow;

/// Space of each datastore that could be asked.
pub type Capacities = BTreeMap<DatastoreId, Capacity>;

impl App {
    /// Asks every datastore for its space; one that does not answer is left out.
    pub async fn capacities(&self) -> Capacities {
        let local = self.nodes().local();
        let asked: Vec<_> = {
            let snapshot = self.inventory().read();
            let host = |id| Some((id, reach::choose(&[id], local, &snapshot).ok()?));
            snapshot.datastores.keys().filter_map(|id| host(*id)).collect()
        };
        let answers = asked.into_iter().map(|(id, host)| async move {
            let ask = |node: Arc<dyn NodeApi>| async move { node.capacity(id).await };
            Some((id, self.nodes().figures(host, ask).await.ok()?))
        });
        join_all(answers).await.into_iter().flatten().collect()
    }

    pub async fn create_volume(&self, request: &VolumeCreate) -> Result<Task, Problem> {
        let capacities = self.capacities().await;
        self.start(|snapshot, mint| {
            let draft = intake::volume::create(request, snapshot, mint)?;
            space_check(std::slice::from_ref(&draft.volume), &capacities, snapshot)?;
            Ok((CreateFlow::new(draft.volume), draft.txn))
        })
        .await
    }

    pub async fn patch_volume(
        &self,
        reference: &str,
        patch: &MetaPatch,
        expected: Option<Revision>,
    ) -> Result<VolumeId, Problem> {
        self.commit(|snapshot, _| {
            let old = snapshot.ready_volume(reference)?;
            unchanged(old, expected)?;
            let mut new = old.value.clone();
            let kind = (Kind::Volume, new.id);
            let (meta, txn) = meta::change(kind, &snapshot.volumes, &old.value.meta, patch.into())?;
            new.meta = meta;
            let unlocked = keys::lock(Kind::Volume, new.id);
            Ok((new.id, txn.require_absent(unlocked).replace(old, &new)))
        })
        .await
    }

    pub async fn delete_volume(
        &self,
        reference: &str,
        expected: Option<Revision>,
    ) -> Result<Task, Problem> {
        self.start(|snapshot, _| {
            let record = snapshot.ready_volume(reference)?;
            unchanged(record, expected)?;
            let volume = &record.value;
            let mut users = snapshot.linked_to_volume(volume.id);
            users.extend(attached_to(volume.id, snapshot));
            if !users.is_empty() {
                return Err(problems::in_use("volume", &volume.meta.name, &users));
            }
            let deleting = Volume { state: VolumeState::Deleting, ..volume.clone() };
            let txn = basin_store::records::TxnBuilder::new()
                .require_absent(keys::attachment(volume.id))
                .require_absent(keys::lock(Kind::Volume, volume.id))
                .replace(record, &deleting);
            Ok((VolumeDelete::new(deleting), txn))
        })
        .await
    }

    /// Grows a volume while no VM runs on it.
    pub async fn grow_volume(&self, reference: &str, size: Bytes) -> Result<Task, Problem> {
        let capacities = self.capacities().await;
        self.start(|snapshot, _| {
            let record = snapshot.ready_volume(reference)?;
            let volume = &record.value;
            let name = &volume.meta.name;
            intake::volume::check_size(size)?;
            if size <= volume.size {
                return Err(problems::invalid(format!(
                    "size_bytes: volume '{name}' has {} already, and a volume never shrinks",
                    volume.size
                )));
            }
            let clones = snapshot.linked_to_volume(volume.id);
            if !clones.is_empty() {
                return Err(problems::in_use("volume", name, &clones));
            }
            let vm = snapshot.attachments.get(&volume.id).and_then(|vm| snapshot.vms.get(vm));
            let mut txn = basin_store::records::TxnBuilder::new();
            if let Some(vm) = vm {
                holds::free(&vm.value, snapshot)?;
                if !is_stopped(&vm.value, snapshot) {
                    let advice = "Shut it down first.";
                    let is = "running on that volume";
                    return Err(problems::wrong_state("vm", &vm.value.meta.name, is, advice));
                }
                txn = txn.require_absent(keys::lock(Kind::Vm, vm.value.id));
            }
            let more = size.saturating_sub(volume.size);
            let grown = Volume { size: more, ..volume.clone() };
            space_check(&[grown], &capacities, snapshot)?;
            let txn =
                txn.require_unchanged(record).create(keys::lock(Kind::Volume, volume.id), &());
            Ok((VolumeGrow::new(volume.clone(), size), txn))
        })
        .await
    }
}

/// The VM that a volume is attached to, for a refusal.
fn attached_to(id: VolumeId, snapshot: &Snapshot) -> Option<String> {
    let vm = snapshot.vms.get(snapshot.attachments.get(&id)?)?;
    Some(format!("vm {}", vm.value.meta.name))
}

/// Refuses volumes that their datastores cannot promise any more.
pub fn space_check(
    volumes: &[Volume],
    capacities: &Capacities,
    snapshot: &Snapshot,
) -> Result<(), Problem> {
    let mut wanted: BTreeMap<DatastoreId, Bytes> = BTreeMap::new();
    for volume in volumes {
        *wanted.entry(volume.datastore).or_default() += volume.size;
    }
    for (id, more) in wanted {
        let (Some(datastore), Some(capacity)) = (snapshot.datastores.get(&id), capacities.get(&id))
        else {
            // Who cannot say how much space there is refuses when the file is made.
            continue;
        };
        let promised = space::provisioned(id, snapshot);
        space::admit(&datastore.value, *capacity, promised, more)?;
    }
    Ok(())
}

//! What several workflows do with volumes: make, publish, remove. Idempotent.

use basin_model::keys::{self, Kind};
use basin_model::task::Problem;
use basin_model::volume::{Volume, VolumeSource, VolumeState};
use basin_store::records::TxnBuilder;

use crate::app::Services;
use crate::app::nodes::refused;
use crate::intake::{chain, reach};
use crate::workflow::StepContext;

/// Makes the volume's file.
pub async fn make(volume: &Volume, cx: &StepContext<Services>) -> Result<(), Problem> {
    let (host, chain) = {
        let snapshot = cx.services.inventory.read();
        let chain = chain::under(volume.source, &snapshot);
        let mut datastores = vec![volume.datastore];
        datastores.extend(chain.volumes.iter().map(|v| v.datastore));
        (reach::choose(&datastores, cx.services.nodes.local(), &snapshot)?, chain)
    };
    let progress = cx.bytes_progress(format!("making volume {}", volume.meta.name));
    let node = cx.services.nodes.get(host)?;
    node.create_volume(volume, &chain, progress, cx.cancel.clone()).await.map_err(refused)
}

/// Removes the volume's file.
pub async fn remove(volume: &Volume, cx: &StepContext<Services>) -> Result<(), Problem> {
    let host = {
        let snapshot = cx.services.inventory.read();
        // Without its datastore there is no file that anybody could reach.
        if !snapshot.datastores.contains_key(&volume.datastore) {
            return Ok(());
        }
        reach::choose_for(volume, cx.services.nodes.local(), &snapshot)?
    };
    cx.services.nodes.get(host)?.delete_volume(volume).await.map_err(refused)
}

/// What changes in the store when the volume can be used.
pub fn publish(volume: &Volume) -> TxnBuilder {
    let ready = Volume { state: VolumeState::Ready, ..volume.clone() };
    unlock_source(volume, TxnBuilder::new().put(keys::volume(volume.id), &ready))
}

/// What changes in the store when the volume is no more.
pub fn forget(volume: &Volume) -> TxnBuilder {
    TxnBuilder::new()
        .delete(keys::volume(volume.id))
        .delete(Kind::Volume.name(&volume.meta.name))
        .delete(keys::guard(Kind::Volume, volume.id))
        .delete(keys::lock(Kind::Volume, volume.id))
}

/// What changes in the store when the volume is given up before it was ready.
pub fn give_up(volume: &Volume) -> TxnBuilder {
    unlock_source(volume, forget(volume))
}

/// A volume is copied under a lock on its source.
fn unlock_source(volume: &Volume, txn: TxnBuilder) -> TxnBuilder {
    match volume.source {
        VolumeSource::Volume { volume } => txn.delete(keys::lock(Kind::Volume, volume)),
        _ => txn,
    }
}

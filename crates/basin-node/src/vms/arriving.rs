//! What a guest stands on that comes from another server while it runs, and how it is
//! taken away if the guest does not come.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use basin_blockd::control::{Export, Grant, Held, Layer};
use basin_model::vm::{MovedDisk, Vm};
use basin_model::volume::Volume;
use basin_model::{Generation, HostId, VmId, VolumeId};
use basin_qemu::Machine;
use basin_qemu::migrate::Incoming;
use basin_storage::{NewVolume, VolumeContent};
use tokio_util::sync::CancellationToken;

use super::parts::{Parts, unready};
use crate::api::NodeError;
use crate::disks::DiskError;
use crate::images::silent;
use crate::problem::{Unready, node_error, problem};

/// blockd says where it serves NBD once it does.
const SERVED_WITHIN: Duration = Duration::from_secs(5);

/// A VM on its way to this server.
pub struct Arriving<'a> {
    pub vm: &'a Vm,
    pub generation: Generation,
    /// The volumes that move along, as they are at the source.
    pub moved: &'a [Volume],
    pub from: HostId,
}

impl Arriving<'_> {
    pub fn moved_to(&self, volume: VolumeId) -> Option<MovedDisk> {
        self.vm.migration.as_ref()?.disks.get(&volume).copied()
    }
}

impl Parts {
    /// Makes the files of the disks that move, and lets the source fill them. Whatever an
    /// earlier try left of them goes: it is half of something.
    pub async fn make_room(
        &self,
        arriving: &Arriving<'_>,
    ) -> Result<BTreeMap<VolumeId, SocketAddr>, NodeError> {
        for volume in arriving.moved {
            let Some(to) = arriving.moved_to(volume.id) else { continue };
            let place = self.images.datastores.get(to.datastore).map_err(|e| node_error(&e))?;
            place.delete(volume.id).await.map_err(|e| node_error(&e))?;
            let new = NewVolume {
                volume: volume.id,
                format: to.format,
                size: volume.size,
                content: VolumeContent::Blank,
            };
            let never = CancellationToken::new();
            place.create(&new, silent(), never).await.map_err(|e| node_error(&e))?;
            let file = place.volume(volume.id, to.format);
            let grant = Grant {
                volume: volume.id,
                generation: arriving.generation,
                layers: vec![Layer { path: file.path, format: file.format }],
                read_only: false,
                host: arriving.from,
            };
            self.disks.grant(&grant).await.map_err(|e| node_error(&e))?;
        }
        self.served(arriving).await
    }

    /// Where each disk is to be sent.
    pub async fn served(
        &self,
        arriving: &Arriving<'_>,
    ) -> Result<BTreeMap<VolumeId, SocketAddr>, NodeError> {
        let wanted: Vec<VolumeId> = arriving.moved.iter().map(|volume| volume.id).collect();
        let begun = tokio::time::Instant::now();
        loop {
            let grants = match wanted.is_empty() {
                true => Vec::new(),
                false => self.disks.grants().await.map_err(|e| node_error(&e))?,
            };
            let served: BTreeMap<_, _> = grants
                .into_iter()
                .filter(|state| state.grant.generation == arriving.generation)
                .filter_map(|state| Some((state.grant.volume, state.address?)))
                .filter(|(volume, _)| wanted.contains(volume))
                .collect();
            if served.len() == wanted.len() {
                return Ok(served);
            }
            if begun.elapsed() > SERVED_WITHIN {
                let detail = "this server's I/O daemon serves no disks to other servers".to_owned();
                return Err(problem("blockd-unreachable", detail, "see the daemon's log").into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Starts the machine that waits for the guest.
    pub async fn launch_incoming(
        &self,
        arriving: &Arriving<'_>,
        incoming: &Incoming,
    ) -> Result<Arc<dyn Machine>, NodeError> {
        let Arriving { vm, generation, .. } = arriving;
        let refused = |e: Unready| NodeError(e.problem);
        let plan = self.plan(vm, *generation, Some(arriving)).await.map_err(refused)?;
        self.networks.ready(&vm.spec.nics).await.map_err(refused)?;
        let _turn = self.starts.acquire().await;
        let (spec, taps) = self.make(vm, plan).await.map_err(refused)?;
        let launched = self.engine.launch_incoming(&spec, taps, incoming).await;
        launched.map_err(|e| node_error(&e))
    }

    /// Takes away everything of a move that does not come about.
    pub async fn clear(&self, vm: &Vm, generation: Generation) -> Result<(), Unready> {
        self.dismantle(vm.id).await?;
        for (volume, to) in vm.migration.iter().flat_map(|migration| &migration.disks) {
            // Also where the try ended before there was a note.
            self.disks.revoke(*volume, generation).await.map_err(unready)?;
            let place = self.images.datastores.get(to.datastore)?;
            place.delete(*volume).await.map_err(unready)?;
        }
        // What its machine logged, and variables of its firmware: the guest's are elsewhere.
        self.forget(vm.id).await
    }

    /// Whether a machine has used its disks, by what blockd counts.
    pub async fn was_used(&self, vm: VmId) -> Result<bool, DiskError> {
        let exports = self.exports(vm).unwrap_or_default();
        if exports.is_empty() {
            return Ok(false);
        }
        let written = |e: &&Export| !e.read_only;
        let ours: Vec<VolumeId> = exports.iter().filter(written).map(|e| e.volume).collect();
        let states = self.disks.list().await?;
        let used = states
            .iter()
            .filter(|s| ours.contains(&s.export.volume))
            .any(|s| s.running || s.holds || s.stats.writes + s.stats.reads + s.stats.flushes > 0);
        Ok(used)
    }

    /// Whether the devices of all disks of its machine are started, as far as blockd says.
    pub async fn all_served(&self, vm: VmId) -> bool {
        let Ok(exports) = self.exports(vm) else { return false };
        let Ok(states) = self.disks.list().await else { return false };
        let runs = |e: &Export| states.iter().any(|s| s.export.volume == e.volume && s.running);
        exports.iter().all(runs)
    }

    /// The guest is here to stay: its disks are held for as long as it is.
    pub async fn settle(&self, vm: VmId) -> Result<(), Unready> {
        let Some(mut note) = self.note(vm)? else { return Ok(()) };
        for export in &mut note.exports {
            self.disks.revoke(export.volume, note.generation).await.map_err(unready)?;
            self.disks.hold(export.volume, note.generation, Held::Always).await.map_err(unready)?;
            export.held = Held::Always;
        }
        self.write_note(&note)?;
        note.exports.iter().for_each(|export| self.disks.keep(export));
        Ok(())
    }

    /// The guest stays after all, whose target is dead: its disks are taken back.
    pub async fn take_back(&self, vm: VmId) -> Result<(), Unready> {
        for export in self.exports(vm)?.iter().filter(|e| !e.read_only) {
            let (volume, generation) = (export.volume, export.generation);
            self.disks.stop_mirror(volume, generation).await.map_err(unready)?;
            self.disks.hold(volume, generation, Held::Always).await.map_err(unready)?;
        }
        Ok(())
    }

    /// What the VM's machine uses, as it was made.
    pub fn exports(&self, vm: VmId) -> Result<Vec<Export>, Unready> {
        Ok(self.note(vm)?.map(|note| note.exports).unwrap_or_default())
    }
}

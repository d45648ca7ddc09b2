//! Mirrors of the disks that are served, and grants.

use std::sync::{Arc, Weak};

use basin_model::{Bytes, Generation, VolumeId};

use super::exports::ExportDir;
use super::{Registry, cannot_note};
use crate::control::{ErrorCode, Grant, Layer, Mirror, MirrorPhase};
use crate::disk::Disk;
use crate::io::DiskError;
use crate::mirror::{Mirroring, Tapped};
use crate::worker::Pool;

/// How a mirror reaches the queues of its disk.
struct Tap {
    disk: Weak<Disk>,
    mirror: Mirror,
    pool: Arc<Pool>,
    dir: Arc<ExportDir>,
}

impl Tapped for Tap {
    fn attach(&self, mirror: &Arc<Mirroring>) {
        let Some(disk) = self.disk.upgrade() else { return };
        // Queues that start meanwhile find it here.
        disk.set_tap(Some(Arc::clone(mirror)));
        self.pool.tap(self.mirror.volume, Some(mirror));
        if mirror.phase().has_ended() {
            self.detach();
        }
    }

    fn detach(&self) {
        if let Some(disk) = self.disk.upgrade() {
            disk.set_tap(None);
        }
        self.pool.tap(self.mirror.volume, None);
    }

    fn in_sync(&self) {
        if let Some(disk) = self.disk.upgrade() {
            disk.settle();
        }
    }

    fn leaving(&self) -> Result<(), String> {
        self.dir.save_mirror(&self.mirror, true).map_err(|e| cannot_note(e).to_string())?;
        if let Some(disk) = self.disk.upgrade() {
            disk.set_gone(Some(self.mirror.host));
        }
        Ok(())
    }
}

impl Registry {
    /// See [`crate::control::Request::Grant`].
    pub fn grant(&self, grant: &Grant) -> Result<(), DiskError> {
        let relative = |l: &Layer| !l.path.is_absolute();
        if grant.layers.is_empty() || grant.layers.iter().any(relative) {
            let message = "a grant needs layers, with absolute paths";
            return Err(DiskError::new(ErrorCode::Invalid, message));
        }
        self.service.grants.add(grant)
    }

    /// See [`crate::control::Request::Mirror`].
    pub fn mirror(&self, mirror: &Mirror) -> Result<(), DiskError> {
        let disk = self.disk(mirror.volume, mirror.generation)?;
        let (runtime, identity) = self.service.outgoing()?;
        let tap = Tap {
            disk: Arc::downgrade(&disk),
            mirror: mirror.clone(),
            pool: Arc::clone(&self.pool),
            dir: Arc::clone(&self.dir),
        };
        disk.set_mirror(mirror, |block| {
            self.dir.save_mirror(mirror, false).map_err(cannot_note)?;
            Ok(Mirroring::begin(mirror.clone(), block, Box::new(tap), runtime, identity))
        })
    }

    pub fn mirror_limit(&self, volume: VolumeId, limit: Option<Bytes>) -> Result<(), DiskError> {
        let mirror = self.disk(volume, Generation(u64::MAX))?.mirror();
        let message = || format!("volume {volume} is not mirrored");
        let mirror = mirror.ok_or_else(|| DiskError::new(ErrorCode::NotFound, message()))?;
        mirror.set_limit(limit);
        Ok(())
    }

    /// Idempotent.
    pub fn stop_mirror(&self, volume: VolumeId, generation: Generation) -> Result<(), DiskError> {
        match self.disk(volume, generation) {
            Ok(disk) => {
                if let Some(mirror) = disk.mirror() {
                    mirror.stop();
                    if mirror.phase() == MirrorPhase::Stopped {
                        self.dir.forget_mirror(volume).map_err(cannot_note)?;
                    }
                }
                Ok(())
            }
            Err(why) if why.code == ErrorCode::NotFound => Ok(()),
            Err(why) => Err(why),
        }
    }
}

//! For how long a disk's file is held, and its hand-over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use basin_model::{Generation, VolumeId};

use super::{Registry, cannot_note, fence, not_served};
use crate::control::{ErrorCode, Export, Held};
use crate::disk::Disk;
use crate::io::DiskError;

/// How long a disk that is to be held again is waited for.
const TAKE_WITHIN: Duration = Duration::from_secs(5);

impl Registry {
    /// See [`crate::control::Request::Hold`].
    pub fn hold(
        &self,
        volume: VolumeId,
        generation: Generation,
        held: Held,
    ) -> Result<(), DiskError> {
        let disk = self.change_held(volume, generation, held)?;
        tracing::info!(%volume, ?held, "held otherwise");
        if held == Held::WhileRunning {
            disk.settle();
            return Ok(());
        }
        // It stays here, even if it had gone.
        self.dir.came_back(volume).map_err(cannot_note)?;
        disk.set_gone(None);
        let end = Instant::now() + TAKE_WITHIN;
        loop {
            match disk.take() {
                Ok(_) => return Ok(()),
                Err(why) if why.code == ErrorCode::Locked && Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(why) => {
                    self.change_held(volume, generation, Held::WhileRunning)?;
                    return Err(why);
                }
            }
        }
    }

    fn change_held(
        &self,
        volume: VolumeId,
        generation: Generation,
        held: Held,
    ) -> Result<Arc<Disk>, DiskError> {
        let mut entries = self.lock();
        let entry = entries.get_mut(&volume).ok_or_else(|| not_served(volume))?;
        fence(&entry.export, generation)?;
        let disk = match &entry.served {
            Ok(served) => Arc::clone(&served.disk),
            Err(why) => return Err(why.clone()),
        };
        let export = Export { held, ..entry.export.clone() };
        self.dir.save(&export).map_err(cannot_note)?;
        entry.export = export;
        disk.set_held(held);
        Ok(disk)
    }

    /// See [`crate::control::Request::AwaitRelease`].
    pub fn await_release(
        &self,
        volume: VolumeId,
        generation: Generation,
        mirrored: bool,
        limit: Duration,
    ) -> Result<(), DiskError> {
        self.disk(volume, generation)?.await_release(mirrored, limit)
    }
}

//! Which disks are served, and who may change that.

mod exports;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use basin_model::{Bytes, Generation, VolumeId};

use crate::control::{ErrorCode, Export, ExportState, Stats};
use crate::disk::Disk;
use crate::io::DiskError;
use crate::vhost::front::FrontEnd;
use crate::worker::Pool;
use exports::ExportDir;

const MAX_QUEUES: u16 = 64;
/// The longest path that a unix socket can have, less the suffix used while binding.
const MAX_SOCKET: usize = 106;

/// A disk and its socket.
struct Served {
    disk: Arc<Disk>,
    front: FrontEnd,
}

impl Served {
    /// Cuts the front end off, drains, and makes the data stable.
    fn close(self) -> Result<(), DiskError> {
        self.front.close();
        self.disk.block.sync().map_err(|e| {
            let message = format!("cannot write the disk's data out: {e}");
            DiskError::new(ErrorCode::Io, message)
        })
    }
}

struct Entry {
    export: Export,
    /// Or why it is not served, and is tried again.
    served: Result<Served, DiskError>,
}

pub struct Registry {
    pool: Arc<Pool>,
    dir: ExportDir,
    entries: Mutex<BTreeMap<VolumeId, Entry>>,
}

impl Registry {
    /// Serves what was served before.
    pub fn restore(dir: &Path, pool: Arc<Pool>) -> std::io::Result<Registry> {
        let dir = ExportDir::open(dir.to_owned())?;
        let mut entries = BTreeMap::new();
        for export in dir.load()? {
            let served = serve(&export, &pool);
            if let Err(why) = &served {
                tracing::warn!(volume = %export.volume, %why, "cannot serve yet");
            }
            entries.insert(export.volume, Entry { export, served });
        }
        Ok(Registry { pool, dir, entries: Mutex::new(entries) })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tries again what could not be served; true if something still cannot.
    pub fn retry(&self) -> bool {
        let mut failing = false;
        for entry in self.lock().values_mut().filter(|e| e.served.is_err()) {
            match serve(&entry.export, &self.pool) {
                Ok(served) => {
                    tracing::info!(volume = %entry.export.volume, "serving at last");
                    entry.served = Ok(served);
                }
                Err(why) => {
                    entry.served = Err(why);
                    failing = true;
                }
            }
        }
        failing
    }

    pub fn open(&self, export: Export) -> Result<(), DiskError> {
        check(&export)?;
        let mut entries = self.lock();
        if let Some(entry) = entries.get(&export.volume) {
            fence(&entry.export, export.generation)?;
            if entry.served.is_ok() && entry.export == export {
                return Ok(());
            }
            if entry.served.is_ok() && entry.export.generation == export.generation {
                let message = format!(
                    "volume {} is already served otherwise under generation {}: close it first",
                    export.volume, export.generation
                );
                return Err(DiskError::new(ErrorCode::Invalid, message));
            }
        }
        let older = entries.remove(&export.volume);
        if let Some(Entry { served: Ok(older), .. }) = older {
            tracing::info!(volume = %export.volume, generation = %export.generation,
                "a newer generation takes over");
            older.close()?;
        }
        let outcome = serve(&export, &self.pool).and_then(|served| {
            self.dir
                .save(&export)
                .map(|()| served)
                .map_err(|e| DiskError::new(ErrorCode::Io, format!("cannot note the export: {e}")))
        });
        match outcome {
            Ok(served) => {
                tracing::info!(volume = %export.volume, generation = %export.generation, "serving");
                let volume = export.volume;
                entries.insert(volume, Entry { export, served: Ok(served) });
                Ok(())
            }
            Err(why) => {
                let _ = self.dir.remove(export.volume);
                Err(why)
            }
        }
    }

    pub fn close(&self, volume: VolumeId, generation: Generation) -> Result<(), DiskError> {
        let mut entries = self.lock();
        let Some(entry) = entries.get(&volume) else { return Ok(()) };
        fence(&entry.export, generation)?;
        let entry = entries.remove(&volume);
        // The file goes first: a crash from here on must not bring the export back.
        let forgotten = self.dir.remove(volume);
        if let Some(Entry { served: Ok(served), .. }) = entry {
            served.close()?;
        }
        forgotten.map_err(|e| {
            DiskError::new(ErrorCode::Io, format!("cannot remove the note of the export: {e}"))
        })?;
        tracing::info!(%volume, "closed");
        Ok(())
    }

    pub fn resize(&self, volume: VolumeId, size: Bytes) -> Result<(), DiskError> {
        let entries = self.lock();
        let not_found =
            || DiskError::new(ErrorCode::NotFound, format!("volume {volume} is not served"));
        let served = entries.get(&volume).ok_or_else(not_found)?.served.as_ref();
        let served = served.map_err(Clone::clone)?;
        let before = served.disk.block.size();
        if served.disk.block.grow(size)? != before {
            served.front.config_changed();
        }
        Ok(())
    }

    pub fn list(&self) -> Vec<ExportState> {
        let state = |entry: &Entry| {
            let export = entry.export.clone();
            match &entry.served {
                Ok(Served { disk, front }) => ExportState {
                    export,
                    connected: front.connected(),
                    size: disk.size(),
                    stats: disk.counters.snapshot(),
                    stalled: disk.stalled(),
                },
                Err(why) => ExportState {
                    export,
                    connected: false,
                    size: Bytes::ZERO,
                    stats: Stats::default(),
                    stalled: Some(format!("not served: {why}")),
                },
            }
        };
        self.lock().values().map(state).collect()
    }

    /// Has any disk a front end?
    pub fn in_use(&self) -> bool {
        self.lock().values().any(|e| e.served.as_ref().is_ok_and(|s| s.front.connected()))
    }

    /// Closes everything but keeps the exports for the next start.
    pub fn shut_down(&self) {
        for (volume, entry) in std::mem::take(&mut *self.lock()) {
            if let Ok(served) = entry.served
                && let Err(why) = served.close()
            {
                tracing::error!(%volume, %why, "closing");
            }
        }
    }
}

fn serve(export: &Export, pool: &Arc<Pool>) -> Result<Served, DiskError> {
    let disk = Arc::new(Disk::open(export)?);
    let front = FrontEnd::listen(&export.socket, export.uid, Arc::clone(&disk), Arc::clone(pool))
        .map_err(|e| {
        let message = format!("cannot listen on {}: {e}", export.socket.display());
        DiskError::new(ErrorCode::Io, message)
    })?;
    Ok(Served { disk, front })
}

fn fence(export: &Export, generation: Generation) -> Result<(), DiskError> {
    if generation >= export.generation {
        return Ok(());
    }
    let message = format!(
        "generation {generation} no longer holds volume {}: generation {} does",
        export.volume, export.generation
    );
    Err(DiskError::new(ErrorCode::Fenced, message))
}

fn check(export: &Export) -> Result<(), DiskError> {
    let invalid = |message: String| Err(DiskError::new(ErrorCode::Invalid, message));
    if export.queues == 0 || export.queues > MAX_QUEUES {
        return invalid(format!("{} queues: a disk has 1 to {MAX_QUEUES}", export.queues));
    }
    if export.serial.len() > 20 {
        return invalid(format!("the serial '{}' has more than 20 bytes", export.serial));
    }
    if export.socket.as_os_str().len() > MAX_SOCKET {
        return invalid(format!(
            "the socket's path {} has more than {MAX_SOCKET} bytes",
            export.socket.display()
        ));
    }
    let relative = |p: &Path| !p.is_absolute();
    if relative(&export.socket) || export.layers.iter().any(|l| relative(&l.path)) {
        return invalid("paths must be absolute".into());
    }
    Ok(())
}

//! Which disks are served, and who may change that.

mod exports;
mod hold;
mod mirrors;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ScopedJoinHandle;

use basin_model::{Bytes, Generation, VolumeId};

use crate::control::{ErrorCode, Export, ExportState, Held, Stats};
use crate::disk::Disk;
use crate::io::DiskError;
use crate::nbd::grants::Grants;
use crate::nbd::service::Service;
use crate::vhost::front::FrontEnd;
use crate::worker::Pool;
use exports::{Begun, ExportDir};

const MAX_QUEUES: u16 = 64;
/// Disks that are opened in parallel at the start.
const AT_ONCE: usize = 8;
/// The longest path that a unix socket can have, less the suffix used while binding.
const MAX_SOCKET: usize = 106;

/// A disk and its socket.
struct Served {
    disk: Arc<Disk>,
    front: FrontEnd,
}

impl Served {
    /// Cuts the front end off, drains, makes the data stable and lets the file go.
    fn close(self) -> Result<(), DiskError> {
        self.front.close();
        let synced = self.disk.close();
        synced.map_err(|e| {
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
    pub service: Service,
    dir: Arc<ExportDir>,
    entries: Mutex<BTreeMap<VolumeId, Entry>>,
}

impl Registry {
    /// Serves what was served before.
    pub fn restore(dir: &Path, pool: Arc<Pool>) -> std::io::Result<Registry> {
        let dir = Arc::new(ExportDir::open(dir.to_owned())?);
        let service = Service::default();
        let mut entries = BTreeMap::new();
        let mut exports = dir.load()?.into_iter();
        // Some at a time: a disk that has to be checked first does not hold up the rest.
        loop {
            let some: Vec<Export> = exports.by_ref().take(AT_ONCE).collect();
            if some.is_empty() {
                break;
            }
            let (pool, grants, dir) = (&pool, &service.grants, &dir);
            let some: Vec<Entry> = std::thread::scope(|scope| {
                let opening: Vec<_> = some
                    .into_iter()
                    .map(|export| {
                        (
                            scope.spawn({
                                let export = export.clone();
                                move || serve(&export, pool, grants, dir)
                            }),
                            export,
                        )
                    })
                    .collect();
                let entry = |(opening, export): (ScopedJoinHandle<'_, _>, _)| {
                    let gone = || Err(DiskError::new(ErrorCode::Io, "opening it failed"));
                    Entry { export, served: opening.join().unwrap_or_else(|_| gone()) }
                };
                opening.into_iter().map(entry).collect()
            });
            for entry in some {
                if let Err(why) = &entry.served {
                    tracing::warn!(volume = %entry.export.volume, %why, "cannot serve yet");
                }
                entries.insert(entry.export.volume, entry);
            }
        }
        Ok(Registry { pool, service, dir, entries: Mutex::new(entries) })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tries again what could not be served; true if something still cannot.
    pub fn retry(&self) -> bool {
        let mut failing = false;
        for entry in self.lock().values_mut().filter(|e| e.served.is_err()) {
            match serve(&entry.export, &self.pool, &self.service.grants, &self.dir) {
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
            if entry.served.is_ok() && same_but_for_held(&entry.export, &export) {
                let held = entry.export.held;
                if let Ok(served) = &entry.served {
                    // Only `Hold` says that a hand-over was called off.
                    served.disk.check_here()?;
                }
                drop(entries);
                return match export.held == held {
                    true => Ok(()),
                    false => self.hold(export.volume, export.generation, export.held),
                };
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
        if older.as_ref().is_none_or(|older| older.export.generation != export.generation) {
            // An earlier owner's mirror is nothing to this one.
            self.dir.forget_mirror(export.volume).map_err(cannot_note)?;
        }
        if let Some(Entry { served: Ok(older), .. }) = older {
            tracing::info!(volume = %export.volume, generation = %export.generation,
                "a newer generation takes over");
            older.close()?;
        }
        let outcome = serve(&export, &self.pool, &self.service.grants, &self.dir)
            .and_then(|served| self.dir.save(&export).map(|()| served).map_err(cannot_note));
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

    fn disk(&self, volume: VolumeId, generation: Generation) -> Result<Arc<Disk>, DiskError> {
        let entries = self.lock();
        let entry = entries.get(&volume).ok_or_else(|| not_served(volume))?;
        fence(&entry.export, generation)?;
        match &entry.served {
            Ok(served) => Ok(Arc::clone(&served.disk)),
            Err(why) => Err(why.clone()),
        }
    }

    pub fn resize(&self, volume: VolumeId, size: Bytes) -> Result<(), DiskError> {
        let entries = self.lock();
        let served = entries.get(&volume).ok_or_else(|| not_served(volume))?.served.as_ref();
        let served = served.map_err(Clone::clone)?;
        if served.disk.grow(size)? {
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
                    running: disk.running(),
                    holds: disk.block().is_some(),
                    mirror: disk.mirror_state(),
                },
                Err(why) => ExportState {
                    export,
                    connected: false,
                    size: Bytes::ZERO,
                    stats: Stats::default(),
                    stalled: Some(format!("not served: {why}")),
                    running: false,
                    holds: false,
                    mirror: None,
                },
            }
        };
        self.lock().values().map(state).collect()
    }

    /// Has any disk a front end, or another server a grant?
    pub fn in_use(&self) -> bool {
        self.service.grants.any()
            || self.lock().values().any(|e| e.served.as_ref().is_ok_and(|s| s.front.connected()))
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
        self.service.grants.shut_down();
    }
}

fn serve(
    export: &Export,
    pool: &Arc<Pool>,
    grants: &Arc<Grants>,
    dir: &ExportDir,
) -> Result<Served, DiskError> {
    let disk = Arc::new(Disk::open(export, grants)?);
    if let Some(Begun { mirror, gone }) = dir.mirror(export.volume) {
        let host = mirror.host;
        disk.set_lost_mirror(mirror);
        if gone && export.held == Held::WhileRunning {
            disk.set_gone(Some(host));
        }
    }
    let front = FrontEnd::listen(&export.socket, export.uid, Arc::clone(&disk), Arc::clone(pool))
        .map_err(|e| {
        let message = format!("cannot listen on {}: {e}", export.socket.display());
        DiskError::new(ErrorCode::Io, message)
    })?;
    Ok(Served { disk, front })
}

fn not_served(volume: VolumeId) -> DiskError {
    DiskError::new(ErrorCode::NotFound, format!("volume {volume} is not served"))
}

fn cannot_note(e: std::io::Error) -> DiskError {
    DiskError::new(ErrorCode::Io, format!("cannot note the export: {e}"))
}

fn same_but_for_held(a: &Export, b: &Export) -> bool {
    Export { held: b.held, ..a.clone() } == *b
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

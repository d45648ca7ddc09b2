//! How much room a datastore has, and who was promised what of it.
//!
//! Operations that run at the same time count each other: each reserves what it
//! will need before it writes. What it has written already is in the file
//! system's own figure, so only the rest of a reservation is held back. In a shared
//! datastore the servers tell each other, and count one after the other.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use basin_model::Bytes;
use basin_model::datastore::Capacity;
use nix::sys::statvfs::statvfs;

use super::layout::Layout;
use super::servers::Servers;
use crate::datastore::StorageError;

/// What a new file costs beside its data: inode, directory entry, format headers.
pub const OVERHEAD: Bytes = Bytes::mib(1);

pub struct Space {
    layout: Layout,
    quota: Option<Bytes>,
    /// Where others write as well.
    servers: Option<Arc<Servers>>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    next: u64,
    reservations: BTreeMap<u64, (Bytes, PathBuf)>,
}

impl Space {
    pub fn new(layout: Layout, quota: Option<Bytes>, servers: Option<Arc<Servers>>) -> Arc<Space> {
        Arc::new(Space { layout, quota, servers, held: Mutex::default() })
    }

    pub fn capacity(&self) -> Result<Capacity, StorageError> {
        let io = |source| StorageError::Io { what: self.layout.root.display().to_string(), source };
        let stat = statvfs(&self.layout.root).map_err(|e| io(e.into()))?;
        let block = stat.fragment_size();
        let size = Bytes(stat.blocks().saturating_mul(block));
        let available = Bytes(stat.blocks_available().saturating_mul(block));
        let mut used = Bytes::ZERO;
        for directory in [self.layout.images(), self.layout.volumes(), self.layout.incoming()] {
            used += occupied(&directory).map_err(io)?;
        }
        let (total, free) = match self.quota {
            Some(quota) => (quota.min(size), quota.saturating_sub(used).min(available)),
            None => (size, available),
        };
        Ok(Capacity { total, used, free })
    }

    /// Holds `needed` for the file that will be at `path`, or says what is missing.
    pub fn reserve(
        self: &Arc<Space>,
        needed: Bytes,
        path: &Path,
    ) -> Result<Reservation, StorageError> {
        let mut held = self.lock();
        let _turn = self.servers.as_ref().map(|s| s.space_turn()).transpose()?;
        let id = held.next;
        held.next += 1;
        self.admit(&held, None, needed)?;
        held.reservations.insert(id, (needed, path.to_owned()));
        self.tell(&held)?;
        Ok(Reservation { id, space: self.clone() })
    }

    /// Tells the other servers what this one will still write.
    fn tell(&self, held: &Held) -> Result<(), StorageError> {
        let Some(servers) = &self.servers else { return Ok(()) };
        let reservations = held.reservations.values();
        let all: Vec<_> =
            reservations.map(|(amount, path)| (*amount, servers.relative(path))).collect();
        servers.promise(&all).map_err(|e| self.explain("telling the other servers", Bytes::ZERO, e))
    }

    fn promised_by_others(&self) -> Result<Bytes, StorageError> {
        let Some(servers) = &self.servers else { return Ok(Bytes::ZERO) };
        servers
            .promised()
            .map_err(|e| self.explain("asking what other servers write", Bytes::ZERO, e))
    }

    /// `other` is left out of what is promised.
    fn admit(&self, held: &Held, other: Option<u64>, needed: Bytes) -> Result<(), StorageError> {
        let promised: Bytes = held
            .reservations
            .iter()
            .filter(|(id, _)| Some(**id) != other)
            .map(|(_, (amount, path))| amount.saturating_sub(allocated(path)))
            .sum();
        let promised = promised + self.promised_by_others()?;
        let free = self.capacity()?.free.saturating_sub(promised);
        if needed > free {
            return Err(StorageError::Full { place: self.place(), needed, free });
        }
        Ok(())
    }

    /// An error of the kernel, in the operator's words.
    pub fn explain(
        &self,
        what: impl Into<String>,
        needed: Bytes,
        source: io::Error,
    ) -> StorageError {
        match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => self.full(needed),
            Some(libc::EFBIG) => StorageError::Invalid(format!(
                "{}: the file system of {} has no files that large",
                what.into(),
                self.layout.root.display()
            )),
            _ => StorageError::Io { what: what.into(), source },
        }
    }

    pub fn full(&self, needed: Bytes) -> StorageError {
        let free = self.capacity().map(|c| c.free).unwrap_or_default();
        StorageError::Full { place: self.place(), needed, free }
    }

    fn place(&self) -> String {
        format!("the datastore at {}", self.layout.root.display())
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Room that is held back until this is dropped.
pub struct Reservation {
    id: u64,
    space: Arc<Space>,
}

impl Reservation {
    /// Holds at least `total` in all.
    pub fn raise(&self, total: Bytes) -> Result<(), StorageError> {
        let mut held = self.space.lock();
        let Some((amount, path)) = held.reservations.get(&self.id).cloned() else { return Ok(()) };
        if amount >= total {
            return Ok(());
        }
        let _turn = self.space.servers.as_ref().map(|s| s.space_turn()).transpose()?;
        self.space.admit(&held, Some(self.id), total.saturating_sub(allocated(&path)))?;
        held.reservations.insert(self.id, (total, path));
        self.space.tell(&held)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut held = self.space.lock();
        held.reservations.remove(&self.id);
        // A promise too many until the next one; not worth failing for.
        let _turn = self.space.servers.as_ref().map(|s| s.space_turn());
        let _ = self.space.tell(&held);
    }
}

/// What a file occupies; nothing when it is not there.
pub fn allocated(path: &Path) -> Bytes {
    path.symlink_metadata().map(|m| Bytes(m.blocks().saturating_mul(512))).unwrap_or_default()
}

fn occupied(directory: &Path) -> io::Result<Bytes> {
    let mut sum = Bytes::ZERO;
    for entry in directory.read_dir()? {
        // A file that went meanwhile occupies nothing.
        sum += allocated(&entry?.path());
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use basin_model::HostId;
    use uuid::Uuid;

    #[test]
    fn servers_do_not_promise_the_same_room_twice() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout { root: dir.path().to_owned(), sharer: None };
        for part in [layout.images(), layout.volumes(), layout.incoming()] {
            std::fs::create_dir(part).unwrap();
        }
        let join = || {
            let servers = Servers::join(&layout, HostId::from_uuid(Uuid::new_v4())).unwrap();
            Space::new(layout.clone(), Some(Bytes::mib(10)), Some(Arc::new(servers)))
        };
        let (first, second) = (join(), join());
        let path = layout.incoming().join("a");
        let held = first.reserve(Bytes::mib(4), &path).unwrap();
        let refused = |n| match second.reserve(Bytes::mib(n), &path) {
            Ok(_) => panic!("{n} MiB were promised twice"),
            Err(StorageError::Full { free, .. }) => free,
            Err(e) => panic!("{e}"),
        };
        assert_eq!(refused(7), Bytes::mib(6));
        held.raise(Bytes::mib(8)).unwrap();
        assert_eq!(refused(3), Bytes::mib(2));
        drop(held);
        second.reserve(Bytes::mib(10), &path).unwrap();
    }
}

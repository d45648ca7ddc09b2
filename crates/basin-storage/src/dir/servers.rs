//! The daemons that use one directory at the same time: who is there, whose turn it
//! is, and what each still means to write.
//!
//! Every server has a file of its own in `.basin-servers`, and keeps its first byte
//! locked for as long as it has the datastore open: a server whose byte is free is
//! not writing. What must not happen twice at once (an import, a volume's creation)
//! happens under a lock on one byte of `turns`, whose place follows from the id. All
//! of these locks go with the process that holds them.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use basin_model::{Bytes, HostId};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::layout::Layout;
use super::mark::explain;
use super::ofd;
use super::open::{LOCK_PAUSE, LOCK_TRIES};
use super::space::allocated;
use crate::datastore::StorageError;

/// The byte that says that a server is there.
const PRESENT: i64 = 0;
/// Where the promises begin in a server's file; its proof comes before.
const PROMISES: u64 = 64;
const TURNS: &str = "turns";
/// The byte of `turns` for those who count space.
const SPACE: i64 = 0;
const TURN_PAUSE: Duration = Duration::from_millis(50);

/// This server among the others.
pub struct Servers {
    pub(super) root: PathBuf,
    pub(super) directory: PathBuf,
    host: HostId,
    pub(super) own: File,
}

/// A turn; over when dropped.
pub struct Turn(#[allow(dead_code, reason = "held for its lock")] File);

impl Servers {
    pub fn join(layout: &Layout, host: HostId) -> Result<Servers, StorageError> {
        let (root, directory) = (layout.root.clone(), layout.servers());
        let failed = explain(&root);
        match fs::create_dir(&directory) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
            _ => {}
        }
        fs::set_permissions(&directory, Permissions::from_mode(0o700)).map_err(&failed)?;
        let own = open(&directory.join(host.to_string())).map_err(&failed)?;
        let mut tries = 0;
        while !ofd::try_lock(&own, PRESENT).map_err(|e| no_locks(&root, &e))? {
            tries += 1;
            if tries > LOCK_TRIES {
                return Err(StorageError::Invalid(format!(
                    "the datastore at {} is in use by another daemon of this server",
                    root.display()
                )));
            }
            std::thread::sleep(LOCK_PAUSE);
        }
        let servers = Servers { root, directory, host, own };
        servers.promise(&[]).map_err(failed)?;
        Ok(servers)
    }

    pub(super) fn file_of(&self, host: HostId) -> PathBuf {
        self.directory.join(host.to_string())
    }

    /// Whether another server's daemon has the datastore open. Of this server only
    /// the daemon that asks has.
    pub fn writes(&self, host: HostId) -> io::Result<bool> {
        if host == self.host {
            return Ok(false);
        }
        match OpenOptions::new().read(true).write(true).open(self.file_of(host)) {
            Ok(file) => ofd::is_locked(&file, PRESENT),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Waits until no other server works on `id`.
    pub fn turn(&self, id: Uuid, cancel: &CancellationToken) -> Result<Turn, StorageError> {
        // Two ids on one byte wait for each other in vain, once in ages.
        let place = (id.as_u128() % (1 << 60)) as i64;
        self.wait(SPACE + 1 + place, cancel)
    }

    /// Waits until no other server counts the space.
    pub fn space_turn(&self) -> Result<Turn, StorageError> {
        self.wait(SPACE, &CancellationToken::new())
    }

    fn wait(&self, byte: i64, cancel: &CancellationToken) -> Result<Turn, StorageError> {
        let failed = |e| no_locks(&self.root, &e);
        let file = open(&self.directory.join(TURNS)).map_err(failed)?;
        while !ofd::try_lock(&file, byte).map_err(failed)? {
            if cancel.is_cancelled() {
                return Err(StorageError::Cancelled);
            }
            std::thread::sleep(TURN_PAUSE);
        }
        Ok(Turn(file))
    }

    /// Tells the others what this server will still write, and where.
    pub fn promise(&self, held: &[(Bytes, PathBuf)]) -> io::Result<()> {
        let text = serde_json::to_vec(held)?;
        self.own.write_all_at(&text, PROMISES)?;
        self.own.set_len(PROMISES + text.len() as u64)?;
        self.own.sync_data()
    }

    /// What the other servers that are there will still write.
    pub fn promised(&self) -> io::Result<Bytes> {
        let mut sum = Bytes::ZERO;
        for entry in self.directory.read_dir()? {
            let name = entry?.file_name();
            let Some(host) = name.to_str().and_then(|n| n.parse::<HostId>().ok()) else { continue };
            if !self.writes(host)? {
                continue;
            }
            // One that leaves meanwhile writes nothing more.
            let text = fs::read(self.file_of(host)).unwrap_or_default();
            let text = text.get(PROMISES as usize..).unwrap_or_default();
            let held: Vec<(Bytes, PathBuf)> = serde_json::from_slice(text).unwrap_or_default();
            for (amount, name) in held {
                // Another server may have mounted the directory elsewhere.
                let written = allocated(&self.root.join(name));
                sum += amount.saturating_sub(written);
            }
        }
        Ok(sum)
    }

    /// A path as every server understands it.
    pub fn relative(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).map(Path::to_owned).unwrap_or_default()
    }
}

pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

pub(super) fn present(file: &File) -> io::Result<bool> {
    ofd::is_locked(file, PRESENT)
}

fn no_locks(root: &Path, e: &io::Error) -> StorageError {
    StorageError::Invalid(format!(
        "files at {} cannot be locked ({e}), and servers that share a datastore need that; \
         mount it with locks (NFS: version 4.2, or version 3 without 'nolock')",
        root.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(root: &Path) -> Layout {
        Layout { root: root.to_owned(), sharer: None }
    }

    #[test]
    fn what_a_server_still_means_to_write_counts_while_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (HostId::from_uuid(Uuid::new_v4()), HostId::from_uuid(Uuid::new_v4()));
        let first = Servers::join(&layout(dir.path()), a).unwrap();
        let second = Servers::join(&layout(dir.path()), b).unwrap();
        assert!(first.writes(b).unwrap() && !first.writes(a).unwrap());
        let path = dir.path().join("file");
        first.promise(&[(Bytes::mib(10), first.relative(&path))]).unwrap();
        assert_eq!(second.promised().unwrap(), Bytes::mib(10));
        assert_eq!(first.promised().unwrap(), Bytes::ZERO, "its own are known to it");
        fs::write(&path, vec![1; 4 << 20]).unwrap();
        File::open(&path).unwrap().sync_all().unwrap();
        assert_eq!(second.promised().unwrap(), Bytes::mib(10).saturating_sub(allocated(&path)));
        first.promise(&[]).unwrap();
        assert_eq!(second.promised().unwrap(), Bytes::ZERO);
        first.promise(&[(Bytes::mib(10), "other".into())]).unwrap();
        drop(first);
        assert_eq!(second.promised().unwrap(), Bytes::ZERO, "it is gone");
        assert!(!second.writes(a).unwrap());
    }

    #[test]
    fn a_turn_is_one_servers_and_ends_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let host = || HostId::from_uuid(Uuid::new_v4());
        let first = Servers::join(&layout(dir.path()), host()).unwrap();
        let second = Servers::join(&layout(dir.path()), host()).unwrap();
        let (id, other) = (Uuid::new_v4(), Uuid::new_v4());
        let turn = first.turn(id, &CancellationToken::new()).unwrap();
        drop(second.turn(other, &CancellationToken::new()).unwrap());
        let cancelled = CancellationToken::new();
        cancelled.cancel();
        assert!(matches!(second.turn(id, &cancelled), Err(StorageError::Cancelled)));
        drop(turn);
        second.turn(id, &CancellationToken::new()).unwrap();
    }
}

//! Files that are not there yet: written in `incoming/`, put in place in one step.

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use basin_model::Bytes;
use nix::unistd::geteuid;
use uuid::Uuid;

use super::layout::Layout;
use super::space::Space;
use crate::datastore::StorageError;

/// The group that may read the files of a datastore through a descriptor that
/// somebody hands it: `qemu-img` at work. Has no entry in the group file; the
/// directories are closed to it.
pub const STORAGE_GID: u32 = 1_899_999_999;

/// A temporary file; removed when dropped unless it was put in place.
pub struct Staged {
    pub path: PathBuf,
    pub file: File,
    placed: bool,
}

impl Staged {
    pub fn new(layout: &Layout, space: &Space) -> Result<Staged, StorageError> {
        let path = layout.temporary(Uuid::new_v4());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| space.explain("making a temporary file", Bytes::ZERO, e))?;
        Ok(Staged { path, file, placed: false })
    }

    /// A second name for a file that is in `incoming/` already.
    pub fn link(layout: &Layout, space: &Space, of: &Path) -> Result<Staged, StorageError> {
        let path = layout.temporary(Uuid::new_v4());
        let failed = |e| space.explain("taking over an upload", Bytes::ZERO, e);
        fs::hard_link(of, &path).map_err(failed)?;
        let file = File::open(&path).inspect_err(|_| _ = fs::remove_file(&path)).map_err(failed)?;
        Ok(Staged { path, file, placed: false })
    }

    /// Lets `uid` open the file through a descriptor.
    pub fn lend(&self, uid: Option<u32>, space: &Space) -> Result<(), StorageError> {
        let Some(uid) = uid else { return Ok(()) };
        fchown(&self.file, Some(uid), Some(uid))
            .map_err(|e| space.explain("lending a file to qemu-img", Bytes::ZERO, e))
    }

    /// Puts the file in place for good: owner root, the given mode, on disk.
    pub fn place(mut self, to: &Path, mode: u32, space: &Space) -> Result<(), StorageError> {
        let failed =
            |e| space.explain(format!("putting {} in place", to.display()), Bytes::ZERO, e);
        if geteuid().is_root() {
            fchown(&self.file, Some(0), Some(STORAGE_GID)).map_err(failed)?;
        }
        self.file.set_permissions(Permissions::from_mode(mode)).map_err(failed)?;
        self.file.sync_all().map_err(failed)?;
        fs::rename(&self.path, to).map_err(failed)?;
        self.placed = true;
        sync_parent(to).map_err(failed)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.placed {
            // What cannot be removed now is swept at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes a change of names lasting.
pub fn sync_parent(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Removes a file for good; says whether it was there.
pub fn remove(path: &Path) -> std::io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path).map(|()| true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

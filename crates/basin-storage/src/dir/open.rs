//! Takes a datastore's directory into use: checks its mark, locks it, and clears
//! away what an interrupted operation left.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use basin_model::{Bytes, DatastoreId, HostId};
use nix::fcntl::{Flock, FlockArg};

use super::Patience;
use super::layout::{
    ABOUT, FORMATS, IMAGES, INCOMING, LOCK, Layout, TEMPORARY, UPLOAD, VOLUMES, extension, writer,
};
use super::mark::{self, explain};
use super::servers::Servers;
use super::stage::sync_parent;
use crate::datastore::StorageError;

/// An upload that nobody imported by then is removed.
const UPLOAD_LIFE: Duration = Duration::from_secs(24 * 3600);

/// What another server has only just begun looks like a leftover. Nothing that it
/// does in between takes this long.
const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 3600);

pub const LOCK_TRIES: u32 = 40;
pub const LOCK_PAUSE: Duration = Duration::from_millis(25);

/// How a datastore is to be opened.
#[derive(Debug, Clone)]
pub struct Opening {
    pub id: DatastoreId,
    pub path: PathBuf,
    pub quota: Option<Bytes>,
    /// This server, where others use the directory at the same time.
    pub sharer: Option<HostId>,
    /// Limits for fetches.
    pub patience: Patience,
}

/// Held for as long as the datastore is open.
pub enum Tenure {
    /// Keeps other daemons out.
    Alone(#[allow(dead_code, reason = "held for its lock")] Flock<File>),
    /// Tells the others that this one is there.
    Among(Arc<Servers>),
}

pub fn open(opening: &Opening) -> Result<(Layout, Tenure), StorageError> {
    let path = &opening.path;
    let root = mark::find(opening.id, path)?;
    let layout = Layout { root, sharer: opening.sharer };
    let failed = explain(path);
    let tenure = match opening.sharer {
        Some(host) => Tenure::Among(Arc::new(Servers::join(&layout, host)?)),
        None => Tenure::Alone(lock(&layout.root).map_err(&failed)??),
    };
    // ISO files and kernels are opened by QEMU under the VM's own user, which must
    // know the name: it may pass through `images`, not list it.
    for (name, mode) in [(IMAGES, 0o711), (VOLUMES, 0o700), (INCOMING, 0o700)] {
        let directory = layout.root.join(name);
        match fs::create_dir(&directory) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
            _ => {}
        }
        fs::set_permissions(&directory, Permissions::from_mode(mode)).map_err(&failed)?;
    }
    sync_parent(&layout.incoming()).map_err(&failed)?;
    sweep(&layout, &tenure).map_err(failed)?;
    Ok((layout, tenure))
}

/// A daemon that was killed may have a child that has not ended or not begun its
/// own program yet, and holds the lock for that moment: so it is tried for a while.
fn lock(root: &Path) -> io::Result<Result<Flock<File>, StorageError>> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(root.join(LOCK))?;
    for _ in 0..LOCK_TRIES {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Ok(lock)),
            Err((file, nix::errno::Errno::EWOULDBLOCK)) => file,
            Err((_, e)) => return Err(e.into()),
        };
        std::thread::sleep(LOCK_PAUSE);
    }
    Ok(Err(StorageError::Invalid(format!(
        "the datastore at {} is in use by another daemon",
        root.display()
    ))))
}

/// Removes temporaries, uploads past their time, and descriptions without an image.
fn sweep(layout: &Layout, tenure: &Tenure) -> io::Result<()> {
    let now = SystemTime::now();
    let age = |entry: &fs::DirEntry| {
        // One that went meanwhile is nobody's to sweep.
        let modified = entry.metadata().and_then(|m| m.modified()).unwrap_or(now);
        now.duration_since(modified).unwrap_or_default()
    };
    for entry in layout.incoming().read_dir()? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let left = if name.starts_with(UPLOAD) {
            age(&entry) > UPLOAD_LIFE
        } else if let Tenure::Among(servers) = tenure {
            match writer(&name) {
                // Its writer cannot go on any more: it is another process, or dead.
                Some(host) => name.starts_with(TEMPORARY) && !servers.writes(host)?,
                None => age(&entry) > LEFTOVER_AGE,
            }
        } else {
            true
        };
        if left {
            tracing::info!(path = %entry.path().display(), "removing what an interrupted operation left");
            gone(fs::remove_file(entry.path()))?;
        }
    }
    for entry in layout.images().read_dir()? {
        let entry = entry?;
        let path = entry.path();
        let about = path.extension().is_some_and(|e| e == ABOUT);
        let left = matches!(tenure, Tenure::Alone(_)) || age(&entry) > LEFTOVER_AGE;
        let orphan = || !FORMATS.iter().any(|f| path.with_extension(extension(*f)).exists());
        if about && left && orphan() {
            gone(fs::remove_file(&path))?;
        }
    }
    Ok(())
}

/// Another server may have been quicker.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

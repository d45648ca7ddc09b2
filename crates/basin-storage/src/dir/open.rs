//! Takes a directory into use as a datastore: checks it, marks it, locks it, and
//! clears away what an interrupted operation left.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use basin_model::DatastoreId;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statvfs::{FsFlags, statvfs};
use serde::{Deserialize, Serialize};

use super::layout::{
    ABOUT, FORMATS, IMAGES, INCOMING, LOCK, Layout, MARKER, UPLOAD, VOLUMES, extension,
};
use super::stage::sync_parent;
use crate::datastore::StorageError;

/// An upload that nobody imported by then is removed.
const UPLOAD_LIFE: Duration = Duration::from_secs(24 * 3600);

const LOCK_TRIES: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(25);

#[derive(Serialize, Deserialize)]
struct Marker {
    datastore: DatastoreId,
    layout: u32,
}

const LAYOUT_VERSION: u32 = 1;

/// Keeps other daemons out for as long as it lives.
pub type Lock = Flock<File>;

pub fn open(id: DatastoreId, path: &Path) -> Result<(Layout, Lock), StorageError> {
    let place = path.display();
    if !path.is_absolute() {
        return Err(StorageError::Invalid(format!("{place} is not an absolute path")));
    }
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::ReadOnlyFilesystem => read_only(path),
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => not_a_directory(path),
        _ => StorageError::Io { what: format!("preparing the datastore at {place}"), source },
    };
    fs::create_dir_all(path).map_err(failed)?;
    if !path.metadata().map_err(failed)?.is_dir() {
        return Err(not_a_directory(path));
    }
    let stat = statvfs(path).map_err(|e| failed(e.into()))?;
    if stat.flags().contains(FsFlags::ST_RDONLY) {
        return Err(read_only(path));
    }
    let layout = Layout { root: path.canonicalize().map_err(failed)? };
    let marked = read_marker(&layout, id)?;
    if !marked {
        refuse_foreign(&layout.root).map_err(failed)?.map_or(Ok(()), Err)?;
    }
    let lock = lock(&layout.root).map_err(failed)??;
    if !marked {
        write_marker(&layout.root, id).map_err(failed)?;
    }
    // ISO files and kernels are opened by QEMU under the VM's own user, which must
    // know the name: it may pass through `images`, not list it.
    for (name, mode) in [(IMAGES, 0o711), (VOLUMES, 0o700), (INCOMING, 0o700)] {
        let directory = layout.root.join(name);
        match fs::create_dir(&directory) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
            _ => {}
        }
        fs::set_permissions(&directory, Permissions::from_mode(mode)).map_err(failed)?;
    }
    sync_parent(&layout.incoming()).map_err(failed)?;
    sweep(&layout).map_err(failed)?;
    Ok((layout, lock))
}

fn read_only(path: &Path) -> StorageError {
    StorageError::Invalid(format!("the file system of {} is read-only", path.display()))
}

fn not_a_directory(path: &Path) -> StorageError {
    StorageError::Invalid(format!("{} is not a directory", path.display()))
}

/// Whether the directory is this datastore already; another one is refused.
fn read_marker(layout: &Layout, id: DatastoreId) -> Result<bool, StorageError> {
    let path = layout.root.join(MARKER);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => {
            return Err(StorageError::Io { what: format!("reading {}", path.display()), source });
        }
    };
    let place = layout.root.display();
    let marker: Marker = serde_json::from_slice(&text).map_err(|e| StorageError::Corrupt {
        what: path.display().to_string(),
        why: format!("it does not name a datastore ({e})"),
    })?;
    if marker.datastore != id {
        return Err(StorageError::Invalid(format!(
            "{place} is another datastore already ({}); choose another directory, or remove \
             {MARKER} there when nobody needs its volumes any more",
            marker.datastore
        )));
    }
    if marker.layout != LAYOUT_VERSION {
        return Err(StorageError::Invalid(format!(
            "{place} has layout {}, this version of Basin knows {LAYOUT_VERSION}",
            marker.layout
        )));
    }
    Ok(true)
}

/// A directory with somebody's files in it is not taken: `/etc` is a typing error.
fn refuse_foreign(root: &Path) -> io::Result<Option<StorageError>> {
    for entry in root.read_dir()? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if name != "lost+found" && !name.starts_with(".basin-") {
            return Ok(Some(StorageError::Invalid(format!(
                "{} is not empty (it has '{name}'); a new datastore needs an empty directory",
                root.display()
            ))));
        }
    }
    Ok(None)
}

/// A daemon that was killed may have a child that has not ended or not begun its
/// own program yet, and holds the lock for that moment: so it is tried for a while.
fn lock(root: &Path) -> io::Result<Result<Lock, StorageError>> {
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

fn write_marker(root: &Path, id: DatastoreId) -> io::Result<()> {
    let temporary = root.join(format!("{MARKER}.new"));
    let mut file = File::create(&temporary)?;
    serde_json::to_writer(&mut file, &Marker { datastore: id, layout: LAYOUT_VERSION })?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    let marker = root.join(MARKER);
    fs::rename(&temporary, &marker)?;
    sync_parent(&marker)
}

/// Removes temporaries, uploads past their time, and descriptions without an image.
fn sweep(layout: &Layout) -> io::Result<()> {
    let now = SystemTime::now();
    for entry in layout.incoming().read_dir()? {
        let entry = entry?;
        let name = entry.file_name();
        let upload = name.to_string_lossy().starts_with(UPLOAD);
        let age = entry.metadata()?.modified()?;
        let age = now.duration_since(age).unwrap_or_default();
        if !upload || age > UPLOAD_LIFE {
            tracing::info!(path = %entry.path().display(), "removing what an interrupted operation left");
            fs::remove_file(entry.path())?;
        }
    }
    for entry in layout.images().read_dir()? {
        let path = entry?.path();
        let about = path.extension().is_some_and(|e| e == ABOUT);
        if about && !FORMATS.iter().any(|f| path.with_extension(extension(*f)).exists()) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

//! The mark of a datastore: made once, when it is created, and looked for ever after.
//!
//! A directory without it may be the mount point of a file system that is not
//! mounted. Marking it then would make a second, empty datastore of the same name.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use basin_model::DatastoreId;
use nix::sys::statvfs::{FsFlags, statvfs};
use serde::{Deserialize, Serialize};

use super::layout::{IMAGES, INCOMING, LOCK, MARKER, SERVERS, VOLUMES};
use super::stage::{remove, sync_parent};
use crate::datastore::StorageError;

#[derive(Serialize, Deserialize)]
struct Marker {
    datastore: DatastoreId,
    layout: u32,
}

const LAYOUT_VERSION: u32 = 1;

/// Makes the directory this datastore's, unless it is already. Idempotent.
pub fn make(id: DatastoreId, path: &Path) -> Result<(), StorageError> {
    check_absolute(path)?;
    let failed = explain(path);
    fs::create_dir_all(path).map_err(&failed)?;
    let root = directory(path)?;
    match read(&root, id) {
        Err(StorageError::NotMounted { .. }) => {}
        other => return other,
    }
    refuse_foreign(&root).map_err(&failed)?.map_or(Ok(()), Err)?;
    write(&root, id).map_err(failed)
}

/// The directory, if it is this datastore's.
pub fn find(id: DatastoreId, path: &Path) -> Result<PathBuf, StorageError> {
    check_absolute(path)?;
    match fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(not_mounted(path)),
        _ => {}
    }
    let root = directory(path)?;
    read(&root, id)?;
    Ok(root)
}

/// Takes the marks away from a directory that holds nothing, so that it may become
/// something else. One with anything in it keeps them. Idempotent.
pub fn unmake(id: DatastoreId, path: &Path) -> Result<(), StorageError> {
    let root = match find(id, path) {
        Ok(root) => root,
        // Not there, or somebody else's.
        Err(_) => return Ok(()),
    };
    let gone = |result: io::Result<()>| match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    for name in [IMAGES, VOLUMES, INCOMING] {
        if let Err(e) = gone(fs::remove_dir(root.join(name))) {
            if e.kind() == io::ErrorKind::DirectoryNotEmpty {
                return Ok(());
            }
            return Err(explain(path)(e));
        }
    }
    gone(fs::remove_dir_all(root.join(SERVERS))).map_err(explain(path))?;
    for name in [LOCK, MARKER] {
        remove(&root.join(name)).map_err(explain(path))?;
    }
    Ok(())
}

pub fn explain(path: &Path) -> impl Fn(io::Error) -> StorageError + use<> {
    let path = path.to_owned();
    move |source: io::Error| match source.kind() {
        io::ErrorKind::ReadOnlyFilesystem => read_only(&path),
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => not_a_directory(&path),
        _ => StorageError::Io {
            what: format!("preparing the datastore at {}", path.display()),
            source,
        },
    }
}

pub fn not_mounted(path: &Path) -> StorageError {
    StorageError::NotMounted { place: path.display().to_string() }
}

fn check_absolute(path: &Path) -> Result<(), StorageError> {
    if path.is_absolute() {
        return Ok(());
    }
    Err(StorageError::Invalid(format!("{} is not an absolute path", path.display())))
}

/// The directory's true path; only one that can be written.
fn directory(path: &Path) -> Result<PathBuf, StorageError> {
    let failed = explain(path);
    if !path.metadata().map_err(&failed)?.is_dir() {
        return Err(not_a_directory(path));
    }
    let stat = statvfs(path).map_err(|e| failed(e.into()))?;
    if stat.flags().contains(FsFlags::ST_RDONLY) {
        return Err(read_only(path));
    }
    path.canonicalize().map_err(failed)
}

fn read_only(path: &Path) -> StorageError {
    StorageError::Invalid(format!("the file system of {} is read-only", path.display()))
}

fn not_a_directory(path: &Path) -> StorageError {
    StorageError::Invalid(format!("{} is not a directory", path.display()))
}

/// Refuses a directory that is not marked, and one that is another datastore.
fn read(root: &Path, id: DatastoreId) -> Result<(), StorageError> {
    let path = root.join(MARKER);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(not_mounted(root)),
        Err(source) => {
            return Err(StorageError::Io { what: format!("reading {}", path.display()), source });
        }
    };
    let place = root.display();
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
    Ok(())
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

fn write(root: &Path, id: DatastoreId) -> io::Result<()> {
    let temporary = root.join(format!("{MARKER}.new"));
    let mut file = File::create(&temporary)?;
    serde_json::to_writer(&mut file, &Marker { datastore: id, layout: LAYOUT_VERSION })?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    let marker = root.join(MARKER);
    fs::rename(&temporary, &marker)?;
    sync_parent(&marker)
}

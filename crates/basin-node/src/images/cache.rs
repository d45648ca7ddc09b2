//! Copies of other servers' images, as files.
//!
//! `ID.part` grows as it comes in, and is taken up again after a break. Whole and
//! right, it becomes `ID.qcow2` or `ID.raw`. When a file was last wanted is the time
//! of its last change: the copy that was not wanted for longest goes first.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use basin_model::image::{Image, ImageKind};
use basin_model::volume::VolumeFormat;
use basin_model::{Bytes, ImageId};
use basin_storage::{ImageBytes, LayerFile, Progress, STORAGE_GID, StorageError};
use nix::sys::statvfs::statvfs;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio::sync::OwnedMutexGuard;

const PART: &str = "part";
const BLOCK: usize = 1 << 20;
/// Left to the state directory's file system, whatever is fetched.
const SPARE: Bytes = Bytes::mib(512);

/// See the module.
pub struct Cache {
    dir: PathBuf,
    limit: Option<Bytes>,
    turns: Mutex<HashMap<ImageId, Arc<tokio::sync::Mutex<()>>>>,
}

/// What became of a fetch.
pub enum Fetched {
    Whole(LayerFile),
    /// It is not the image; it was thrown away.
    Wrong,
}

impl Cache {
    pub fn new(dir: PathBuf, limit: Option<Bytes>) -> Cache {
        Cache { dir, limit, turns: Mutex::default() }
    }

    /// One fetches an image at a time.
    pub async fn turn(&self, image: ImageId) -> OwnedMutexGuard<()> {
        self.turn_of(image).lock_owned().await
    }

    fn turn_of(&self, image: ImageId) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(image).or_default().clone()
    }

    fn path(&self, image: ImageId, extension: &str) -> PathBuf {
        self.dir.join(format!("{image}.{extension}"))
    }

    fn whole(&self, image: ImageId, format: VolumeFormat) -> LayerFile {
        LayerFile { path: self.path(image, extension(format)), format }
    }

    /// The copy, if it is there.
    pub async fn find(&self, image: ImageId, format: VolumeFormat) -> Option<LayerFile> {
        let file = self.whole(image, format);
        let path = file.path.clone();
        let used = move || File::open(path)?.set_modified(SystemTime::now());
        blocking("looking for a copy", used).await.ok().map(|()| file)
    }

    /// How much of the copy is there.
    pub async fn begun(&self, image: ImageId) -> Bytes {
        let path = self.path(image, PART);
        let length = move || Ok(fs::metadata(path)?.len());
        blocking("looking for a copy", length).await.map(Bytes).unwrap_or_default()
    }

    /// Writes what comes to the end of what is there. What was written stays when
    /// the caller goes away or the other server does.
    pub async fn fetch(
        &self,
        image: &Image,
        format: VolumeFormat,
        offset: Bytes,
        mut from: ImageBytes,
        progress: &Progress,
    ) -> Result<Fetched, StorageError> {
        let part = self.path(image.id, PART);
        let (mut file, mut hash) = {
            let part = part.clone();
            blocking("taking up a copy", move || take_up(&part, offset)).await?
        };
        let mut done = offset;
        loop {
            let mut block = Vec::with_capacity(BLOCK);
            let mut piece = (&mut from.bytes).take(BLOCK as u64);
            let n = piece.read_to_end(&mut block).await.map_err(|source| StorageError::Io {
                what: "fetching an image from another server".into(),
                source,
            })?;
            if n == 0 {
                break;
            }
            (file, hash) = blocking("writing a copy", move || {
                file.write_all(&block)?;
                hash.update(&block);
                Ok((file, hash))
            })
            .await?;
            done += Bytes(n as u64);
            progress(done, Some(from.size));
            if done > from.size {
                break;
            }
        }
        if done < from.size {
            let source = io::ErrorKind::UnexpectedEof.into();
            return Err(StorageError::Io { what: "an image came only in part".into(), source });
        }
        let digest: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        if done != from.size || !digest.eq_ignore_ascii_case(&from.sha256) {
            blocking("throwing a copy away", move || fs::remove_file(part)).await?;
            return Ok(Fetched::Wrong);
        }
        let (to, kind) = (self.whole(image.id, format), image.kind);
        let path = to.path.clone();
        blocking("putting a copy in place", move || place(&file, &part, &path, kind)).await?;
        Ok(Fetched::Whole(to))
    }

    /// Makes room for `more`: copies go that nothing needs, the longest unused first.
    pub async fn make_room(
        &self,
        more: Bytes,
        needed: &BTreeSet<ImageId>,
    ) -> Result<(), StorageError> {
        let (dir, limit) = (self.dir.clone(), self.limit);
        let (total, free) = blocking("measuring the state directory", move || {
            make_dir(&dir)?;
            let stat = statvfs(&dir)?;
            let block = stat.fragment_size();
            Ok((Bytes(stat.blocks() * block), Bytes(stat.blocks_available() * block)))
        })
        .await?;
        let limit = limit.unwrap_or(Bytes(total.get() / 4));
        let mut copies = self.copies().await?;
        copies.sort_by_key(|copy| copy.used);
        let mut kept: Bytes = copies.iter().map(|copy| copy.size).sum();
        let mut free = free.saturating_sub(SPARE.min(Bytes(total.get() / 20)));
        for copy in copies {
            if kept + more <= limit && more <= free {
                break;
            }
            if !needed.contains(&copy.image) && self.remove(&copy).await? {
                kept = kept.saturating_sub(copy.size);
                free += copy.size;
            }
        }
        if kept + more <= limit && more <= free {
            return Ok(());
        }
        let place = format!("the copies of other servers' images, in {}", self.dir.display());
        Err(StorageError::Full { place, needed: more, free: free.min(limit.saturating_sub(kept)) })
    }

    /// Removes the copies of all other images.
    pub async fn keep_only(&self, images: &BTreeSet<ImageId>) -> Result<(), StorageError> {
        for copy in self.copies().await? {
            if !images.contains(&copy.image) {
                self.remove(&copy).await?;
            }
        }
        Ok(())
    }

    /// Says whether it is gone; one that is being fetched is not.
    async fn remove(&self, copy: &Copy) -> Result<bool, StorageError> {
        let Ok(_turn) = self.turn_of(copy.image).try_lock_owned() else { return Ok(false) };
        let path = copy.path.clone();
        blocking("removing a copy", move || match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        })
        .await?;
        tracing::info!(image = %copy.image, "the copy of an image is removed");
        Ok(true)
    }

    async fn copies(&self) -> Result<Vec<Copy>, StorageError> {
        let dir = self.dir.clone();
        blocking("listing the copies of images", move || list(&dir)).await
    }
}

/// A file of the cache, whole or not.
struct Copy {
    image: ImageId,
    path: PathBuf,
    size: Bytes,
    used: SystemTime,
}

fn list(dir: &Path) -> io::Result<Vec<Copy>> {
    let entries = match dir.read_dir() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut copies = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let image = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        if let (Some(image), Ok(about)) = (image, path.metadata()) {
            let size = Bytes(about.blocks().saturating_mul(512));
            copies.push(Copy { image, size, used: about.modified()?, path });
        }
    }
    Ok(copies)
}

const fn extension(format: VolumeFormat) -> &'static str {
    match format {
        VolumeFormat::Raw => "raw",
        VolumeFormat::Qcow2 => "qcow2",
    }
}

/// QEMU passes through it under the VM's user, and must know the name.
fn make_dir(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    fs::set_permissions(dir, Permissions::from_mode(0o711))
}

/// What is there, open at its end, and its hash so far.
fn take_up(part: &Path, offset: Bytes) -> io::Result<(File, Sha256)> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(part)?;
    file.set_len(offset.get())?;
    let mut hash = Sha256::new();
    let mut block = vec![0; BLOCK];
    loop {
        match file.read(&mut block)? {
            0 => return Ok((file, hash)),
            n => hash.update(&block[..n]),
        }
    }
}

fn place(file: &File, part: &Path, to: &Path, kind: ImageKind) -> io::Result<()> {
    // As the image itself in its datastore.
    let mode = if kind == ImageKind::Disk { 0o440 } else { 0o444 };
    if nix::unistd::geteuid().is_root() {
        fchown(file, Some(0), Some(STORAGE_GID))?;
    }
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()?;
    fs::rename(part, to)?;
    match to.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

async fn blocking<T: Send + 'static>(
    what: &str,
    f: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, StorageError> {
    let done = tokio::task::spawn_blocking(f).await.map_err(io::Error::other).flatten();
    done.map_err(|source| match source.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => StorageError::Full {
            place: "the state directory".into(),
            needed: Bytes(BLOCK as u64),
            free: Bytes::ZERO,
        },
        _ => StorageError::Io { what: what.to_owned(), source },
    })
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;

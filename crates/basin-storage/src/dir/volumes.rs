//! Volumes as files: made blank, copied or linked; grown; deleted.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use basin_model::volume::{Volume, VolumeFormat};
use basin_model::{Bytes, VolumeId};
use tokio_util::sync::CancellationToken;

use super::Inner;
use super::copy::copy_raw;
use super::layout::FORMATS;
use super::space::{OVERHEAD, allocated as occupied};
use super::stage::{STORAGE_GID, Staged, remove};
use crate::datastore::{LayerFile, NewVolume, Progress, StorageError, VolumeContent};
use crate::headers::Qcow2;
use crate::judge::MAX_DISK;
use crate::qemu_img::{ImgError, Opened, QemuImg};
use crate::sandbox::spare_uid;

/// A volume belongs to root; `qemu-img` at work is in the group.
const MODE: u32 = 0o660;

const fn driver(format: VolumeFormat) -> &'static str {
    match format {
        VolumeFormat::Raw => "raw",
        VolumeFormat::Qcow2 => "qcow2",
    }
}

fn failed(what: &str, path: &Path) -> impl Fn(io::Error) -> StorageError {
    let (what, path) = (what.to_owned(), path.to_owned());
    move |source| match source.kind() {
        io::ErrorKind::NotFound => StorageError::NotFound(path.display().to_string()),
        _ => StorageError::Io { what: format!("{what} {}", path.display()), source },
    }
}

fn img_error(inner: &Inner, what: &str, e: ImgError, needed: Bytes) -> StorageError {
    match e {
        ImgError::Cancelled => StorageError::Cancelled,
        ImgError::Full => inner.space.full(needed),
        ImgError::Refused(why) => StorageError::Corrupt { what: what.into(), why },
        ImgError::Io(source) => StorageError::Io { what: "running qemu-img".into(), source },
    }
}

fn check_size(size: Bytes) -> Result<(), StorageError> {
    if size == Bytes::ZERO || !size.is_multiple_of(Volume::SECTOR) || size.get() > MAX_DISK {
        return Err(StorageError::Invalid(format!(
            "a volume of {} bytes is not possible: its size is a multiple of 512 bytes, \
             not zero, and at most 64 TiB",
            size.get()
        )));
    }
    Ok(())
}

/// The size that the guest would see of a layer.
fn size_of(layer: &LayerFile) -> Result<Bytes, StorageError> {
    let failed = failed("reading", &layer.path);
    let file = File::open(&layer.path).map_err(&failed)?;
    if layer.format == VolumeFormat::Raw {
        return Ok(Bytes(file.metadata().map_err(&failed)?.len()));
    }
    let mut head = [0; 112];
    file.read_exact_at(&mut head, 0).map_err(&failed)?;
    match Qcow2::parse(&head) {
        Ok(header) => Ok(Bytes(header.size)),
        Err(_) => Err(StorageError::Corrupt {
            what: layer.path.display().to_string(),
            why: "it has no qcow2 header".into(),
        }),
    }
}

fn top(chain: &[LayerFile], size: Bytes) -> Result<&LayerFile, StorageError> {
    let top = chain
        .first()
        .ok_or_else(|| StorageError::Invalid("there is nothing to copy or link to".into()))?;
    let content = size_of(top)?;
    if size < content {
        return Err(StorageError::Invalid(format!(
            "a volume of {size} is too small for its content of {content}"
        )));
    }
    Ok(top)
}

/// A volume that is there already is left as it is.
pub fn create(
    inner: &Inner,
    new: &NewVolume,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<(), StorageError> {
    check_size(new.size)?;
    for format in FORMATS {
        if inner.layout.volume(new.volume, format).exists() {
            return if format == new.format {
                Ok(())
            } else {
                Err(StorageError::Invalid(format!(
                    "volume {} exists already, in another format",
                    new.volume
                )))
            };
        }
    }
    let staged = match &new.content {
        VolumeContent::Blank => blank(inner, new, cancel)?,
        VolumeContent::Linked(chain) => linked(inner, new, chain, cancel)?,
        VolumeContent::Copy(chain) => copy(inner, new, chain, progress, cancel)?,
    };
    if cancel.is_cancelled() {
        return Err(StorageError::Cancelled);
    }
    staged.place(&inner.layout.volume(new.volume, new.format), MODE, &inner.space)
}

fn set_len(inner: &Inner, file: &File, size: Bytes) -> Result<(), StorageError> {
    file.set_len(size.get()).map_err(|e| inner.space.explain("sizing the volume", Bytes::ZERO, e))
}

/// Thin: room is taken as the guest writes.
fn blank(
    inner: &Inner,
    new: &NewVolume,
    cancel: &CancellationToken,
) -> Result<Staged, StorageError> {
    let staged = Staged::new(&inner.layout, &inner.space)?;
    let _room = inner.space.reserve(OVERHEAD, &staged.path)?;
    match new.format {
        VolumeFormat::Raw => set_len(inner, &staged.file, new.size)?,
        VolumeFormat::Qcow2 => make_qcow2(inner, &staged, new.size, None, cancel)?,
    }
    Ok(staged)
}

fn make_qcow2(
    inner: &Inner,
    staged: &Staged,
    size: Bytes,
    backing: Option<(&Path, &'static str)>,
    cancel: &CancellationToken,
) -> Result<(), StorageError> {
    let uid = spare_uid();
    staged.lend(uid, &inner.space)?;
    QemuImg { uid, cancel }
        .create(staged.file.as_fd(), size, backing)
        .map_err(|e| img_error(inner, "the new volume", e, OVERHEAD))
}

fn linked(
    inner: &Inner,
    new: &NewVolume,
    chain: &[LayerFile],
    cancel: &CancellationToken,
) -> Result<Staged, StorageError> {
    if new.format != VolumeFormat::Qcow2 {
        return Err(StorageError::Invalid("a linked volume is always qcow2".into()));
    }
    let top = top(chain, new.size)?;
    let staged = Staged::new(&inner.layout, &inner.space)?;
    let _room = inner.space.reserve(OVERHEAD, &staged.path)?;
    let name = inner.layout.backing_name(&top.path);
    make_qcow2(inner, &staged, new.size, Some((&name, driver(top.format))), cancel)?;
    Ok(staged)
}

fn copy(
    inner: &Inner,
    new: &NewVolume,
    chain: &[LayerFile],
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<Staged, StorageError> {
    let content = size_of(top(chain, new.size)?)?;
    let staged = Staged::new(&inner.layout, &inner.space)?;
    if let ([LayerFile { path, format: VolumeFormat::Raw }], VolumeFormat::Raw) =
        (chain, new.format)
    {
        let source = File::open(path).map_err(failed("reading", path))?;
        copy_raw(&inner.space, (&source, path), &staged, progress, cancel)?;
        set_len(inner, &staged.file, new.size)?;
        return Ok(staged);
    }
    let (layers, shared) = open_layers(chain)?;
    let uid = if shared { spare_uid() } else { None };
    let qemu = QemuImg { uid, cancel };
    let failed = |e, needed| img_error(inner, "the volume's content", e, needed);
    let needed = qemu.measure(&layers).map_err(|e| failed(e, OVERHEAD))? + OVERHEAD;
    let _room = inner.space.reserve(needed, &staged.path)?;
    staged.lend(uid, &inner.space)?;
    let mut percent = |p: f64| {
        let done = Bytes((content.get() as f64 * p / 100.0) as u64);
        progress(done, Some(content));
    };
    qemu.convert(&layers, driver(new.format), staged.file.as_fd(), content, &mut percent)
        .map_err(|e| failed(e, needed))?;
    match new.format {
        VolumeFormat::Raw => set_len(inner, &staged.file, new.size)?,
        VolumeFormat::Qcow2 if new.size > content => {
            let file = staged.file.as_fd().try_clone_to_owned();
            let file = file.map_err(|e| inner.space.explain("sizing the volume", OVERHEAD, e))?;
            let image = Opened { file, driver: driver(new.format) };
            qemu.resize(&image, new.size).map_err(|e| failed(e, OVERHEAD))?;
        }
        VolumeFormat::Qcow2 => {}
    }
    Ok(staged)
}

/// Opens a chain, and says whether the storage group may read all of it: files
/// that Basin did not put in place itself are read as root instead.
fn open_layers(chain: &[LayerFile]) -> Result<(Vec<Opened>, bool), StorageError> {
    let mut shared = true;
    let mut layers = Vec::with_capacity(chain.len());
    for layer in chain {
        let failed = failed("reading", &layer.path);
        let file = File::open(&layer.path).map_err(&failed)?;
        let about = file.metadata().map_err(&failed)?;
        shared &= about.gid() == STORAGE_GID && about.mode() & 0o040 != 0;
        layers.push(Opened { file: OwnedFd::from(file), driver: driver(layer.format) });
    }
    Ok((layers, shared))
}

/// Idempotent; shrinking is refused.
pub fn grow(
    inner: &Inner,
    volume: VolumeId,
    format: VolumeFormat,
    size: Bytes,
    cancel: &CancellationToken,
) -> Result<(), StorageError> {
    check_size(size)?;
    let layer = LayerFile { path: inner.layout.volume(volume, format), format };
    let now = size_of(&layer)?;
    if size < now {
        return Err(StorageError::Invalid(format!(
            "the volume has {now}; it cannot shrink to {size}"
        )));
    }
    if size == now {
        return Ok(());
    }
    let open = failed("opening", &layer.path);
    let file = OpenOptions::new().read(true).write(true).open(&layer.path).map_err(&open)?;
    let _room = inner.space.reserve(OVERHEAD, Path::new(""))?;
    match format {
        VolumeFormat::Raw => set_len(inner, &file, size)?,
        VolumeFormat::Qcow2 => {
            let about = file.metadata().map_err(&open)?;
            let shared = about.gid() == STORAGE_GID && about.mode() & 0o060 == 0o060;
            let uid = if shared { spare_uid() } else { None };
            let file = file.try_clone().map_err(&open)?;
            let image = Opened { file: file.into(), driver: "qcow2" };
            QemuImg { uid, cancel }
                .resize(&image, size)
                .map_err(|e| img_error(inner, &layer.path.display().to_string(), e, OVERHEAD))?;
        }
    }
    file.sync_all().map_err(|e| inner.space.explain("growing the volume", OVERHEAD, e))
}

/// Idempotent.
pub fn delete(inner: &Inner, volume: VolumeId) -> Result<(), StorageError> {
    let of = |format| {
        // The fence goes last: it must not be missing while there is a volume to guard.
        [inner.layout.volume(volume, format), inner.layout.generation(volume, format)]
    };
    for path in FORMATS.into_iter().flat_map(of) {
        remove(&path).map_err(|source| StorageError::Io {
            what: format!("deleting {}", path.display()),
            source,
        })?;
    }
    Ok(())
}

pub fn allocated(
    inner: &Inner,
    volume: VolumeId,
    format: VolumeFormat,
) -> Result<Bytes, StorageError> {
    let path = inner.layout.volume(volume, format);
    match path.exists() {
        true => Ok(occupied(&path)),
        false => Err(StorageError::NotFound(path.display().to_string())),
    }
}

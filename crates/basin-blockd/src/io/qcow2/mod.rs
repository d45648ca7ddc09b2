//! qcow2 and what its reads fall through to, by the library `imago`.
//!
//! The chain is the export's alone: a header's own backing name is not followed,
//! an external data file is refused. See `docs/decisions/0011-qcow2-imago.md` for
//! what the library does on flush and on errors.

mod plain;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use basin_model::Bytes;
use basin_model::volume::VolumeFormat;
use futures::executor::block_on;
use imago::format::PreallocateMode;
use imago::io_buffers::IoBuffer;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, StorageOpenOptions};

use super::commit::Commits;
use super::lane::{Job, Lane};
use super::raw::{open_file, unreadable};
use super::{Block, DiskError, Reach, dirty, header, lock};
use crate::control::{ErrorCode, Layer};
use crate::generation::Claim;
use crate::request::{Op, Range, SECTOR};

type Image = FormatAccess<imago::file::File>;

/// Data pass through a buffer of at most this: the guest can change its memory at
/// any time, and the library must not see it change.
const CHUNK: usize = 256 << 10;

/// An open qcow2 disk.
pub struct Qcow2Disk {
    target: Arc<Target>,
    size: AtomicU64,
    /// Of the top layer.
    top: Top,
    read_only: bool,
    lane: Lane,
}

impl Qcow2Disk {
    pub fn open(layers: &[Layer], claim: Option<Claim>) -> Result<Qcow2Disk, DiskError> {
        let read_only = claim.is_none();
        let mut below: Option<(Image, Top)> = None;
        for (depth, layer) in layers.iter().enumerate().rev() {
            let claim = claim.filter(|_| depth == 0);
            below = Some(open_layer(layer, claim, below.take().map(|(image, _)| image))?);
        }
        let Some((image, top)) = below else {
            return Err(DiskError::new(ErrorCode::Invalid, "a disk needs at least one layer"));
        };
        let size = AtomicU64::new(image.size() / SECTOR * SECTOR);
        let target = Arc::new(Target { image: RwLock::new(image), commits: Commits::default() });
        let theirs = Arc::clone(&target);
        let lane = Lane::new(Arc::new(move |job: &Job| {
            execute(&theirs, job).map_err(|e| {
                // The library's own words are lost in the number that goes on.
                tracing::warn!(error = %e, op = ?job.op, "qcow2");
                errno(&e)
            })
        }));
        Ok(Qcow2Disk { target, size, top, read_only, lane })
    }

    fn write_out(&self) -> io::Result<()> {
        flush(&self.target.read())?;
        if self.top.marked { dirty::mark(&self.top.file, false) } else { Ok(()) }
    }
}

impl Block for Qcow2Disk {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn reach(&self) -> Reach<'_> {
        Reach::Lane(&self.lane)
    }

    fn close(&self) -> io::Result<()> {
        let written = if self.read_only { Ok(()) } else { self.write_out() };
        lock::unlock(&self.top.file).and(written)
    }

    fn grow(&self, size: Bytes) -> Result<u64, DiskError> {
        let mut image = self.target.image.write().unwrap_or_else(PoisonError::into_inner);
        if size.get() < image.size() {
            let message = format!("{size} is less than the {} it has", Bytes(image.size()));
            return Err(DiskError::new(ErrorCode::Invalid, message));
        }
        let grown = async {
            image.resize(size.get(), PreallocateMode::None).await?;
            image.flush().await?;
            image.sync().await
        };
        block_on(grown)
            .map_err(|e| DiskError::new(ErrorCode::Io, format!("cannot grow the image: {e}")))?;
        let now = image.size() / SECTOR * SECTOR;
        self.size.store(now, Ordering::Relaxed);
        Ok(now)
    }
}

/// A second handle of a layer's file, for what the library does not do.
struct Top {
    file: File,
    /// It bears the mark of being open, which has to be taken off in the end.
    marked: bool,
}

/// The size that an image's header states.
pub fn size(path: &Path) -> Result<u64, DiskError> {
    let file = File::open(path).map_err(|e| unreadable(path, &e))?;
    match read_header(&file) {
        Ok(facts) => Ok(facts.size / SECTOR * SECTOR),
        Err(why) => Err(corrupt(path, &why)),
    }
}

fn corrupt(path: &Path, why: &str) -> DiskError {
    let message = format!("{} is not a usable image: {why}", path.display());
    DiskError::new(ErrorCode::Corrupt, message)
}

/// Opens a layer, for writing if there is a claim.
fn open_layer(
    layer: &Layer,
    claim: Option<Claim>,
    below: Option<Image>,
) -> Result<(Image, Top), DiskError> {
    let path = layer.path.as_path();
    let writable = claim.is_some();
    let corrupt = |why: &str| corrupt(path, why);
    let (mut file, mut align) = open_file(path, claim)?;
    let mut mark = false;
    if layer.format == VolumeFormat::Qcow2 {
        let mut facts = read_header(&file).map_err(|why| corrupt(&why))?;
        if facts.has_backing && below.is_none() {
            return Err(corrupt("it needs a backing file, and the export names none"));
        }
        if writable && facts.unclean {
            // The lock is given up for qemu-img to take it.
            drop(file);
            dirty::repair(path).map_err(|why| corrupt(&why))?;
            (file, align) = open_file(path, claim)?;
            facts = read_header(&file).map_err(|why| corrupt(&why))?;
        }
        if !facts.size.is_multiple_of(SECTOR) {
            tracing::warn!(path = %path.display(), "the image's last part of a sector is not served");
        }
        mark = writable && facts.can_mark;
    } else if below.is_some() {
        let message = "a raw layer has nothing below it: only qcow2 reads fall through";
        return Err(DiskError::new(ErrorCode::Invalid, message));
    }
    let top = file.try_clone().map_err(|e| unreadable(path, &e))?;
    let options = StorageOpenOptions::new().filename(path).write(writable).direct(align.is_some());
    let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let storage = imago::file::File::from_open_file(file, options)?;
        block_on(async {
            match layer.format {
                VolumeFormat::Raw => {
                    let raw = Raw::builder(storage).write(writable);
                    Ok::<_, io::Error>(FormatAccess::new(
                        raw.open(DenyImplicitOpenGate::default()).await?,
                    ))
                }
                VolumeFormat::Qcow2 => {
                    let image: Qcow2<_, Image> = Qcow2::builder(storage)
                        .write(writable)
                        .backing(below)
                        .data_file(None)
                        .open(DenyImplicitOpenGate::default())
                        .await?;
                    Ok(FormatAccess::new(image))
                }
            }
        })
    }));
    match opened {
        Ok(Ok(image)) => {
            if mark {
                // Only now: the library opens no image that bears the mark. Of the
                // header it writes its own part and leaves the mark alone.
                dirty::mark(&top, true).map_err(|e| unreadable(path, &e))?;
            }
            Ok((image, Top { file: top, marked: mark }))
        }
        Ok(Err(e)) if e.raw_os_error().is_some() => Err(unreadable(path, &e)),
        Ok(Err(e)) => Err(corrupt(&e.to_string())),
        Err(_) => Err(corrupt("its metadata contradict each other")),
    }
}

fn read_header(file: &File) -> Result<header::Facts, String> {
    let mut block = dirty::Block([0; 4096]);
    let n = file.read_at(&mut block.0, 0).map_err(|e| e.to_string())?;
    let len = file.metadata().map_err(|e| e.to_string())?.len();
    header::check(&block.0[..n.min(header::LEN)], len)
}

/// Both steps: the library's caches into the file, the file onto the device.
fn flush(image: &Image) -> io::Result<()> {
    block_on(async {
        image.flush().await?;
        image.sync().await
    })
}

/// What a lane works on.
struct Target {
    image: RwLock<Image>,
    commits: Commits,
}

impl Target {
    fn read(&self) -> RwLockReadGuard<'_, Image> {
        self.image.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was written outlives this process.
    fn commit(&self) -> io::Result<()> {
        self.commits.commit(|| block_on(self.read().flush()))
    }
}

fn execute(target: &Target, job: &Job) -> io::Result<()> {
    match job.op {
        Op::GetId => return Ok(()),
        Op::Read => return transfer(&target.read(), job),
        Op::Flush => return flush(&target.read()),
        Op::Write => transfer(&target.read(), job)?,
        Op::Discard | Op::WriteZeroes => {
            for range in &job.ranges {
                clear(&target.image, job.op, *range)?;
            }
        }
    }
    if job.durable { flush(&target.read()) } else { target.commit() }
}

fn transfer(image: &Image, job: &Job) -> io::Result<()> {
    let len = job.data.len() as usize;
    let mut buf = IoBuffer::new(len.min(CHUNK), image.mem_align().max(512))?;
    let mut done = 0;
    while done < len {
        let n = (len - done).min(CHUNK);
        let offset = job.offset + done as u64;
        if job.op == Op::Read {
            block_on(image.readv(buf.as_mut_range(0..n).into_slice().into(), offset))?;
            job.data.write(done, buf.as_ref_range(0..n).into_slice());
        } else {
            job.data.read(done, buf.as_mut_range(0..n).into_slice());
            block_on(image.writev(buf.as_ref_range(0..n).into_slice().into(), offset))?;
        }
        done += n;
    }
    Ok(())
}

fn clear(image: &RwLock<Image>, op: Op, Range { offset, len, unmap }: Range) -> io::Result<()> {
    if op == Op::WriteZeroes && !unmap {
        let image = image.read().unwrap_or_else(PoisonError::into_inner);
        return block_on(image.write_zeroes(offset, len));
    }
    // Taking clusters away needs the image alone.
    let mut image = image.write().unwrap_or_else(PoisonError::into_inner);
    if op == Op::WriteZeroes {
        return block_on(image.discard_to_zero(offset, len));
    }
    match block_on(image.discard_to_any(offset, len)) {
        Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(()),
        other => other,
    }
}

fn errno(error: &io::Error) -> i32 {
    match (error.raw_os_error(), error.kind()) {
        (Some(errno), _) => errno,
        (None, io::ErrorKind::StorageFull) => libc::ENOSPC,
        _ => libc::EIO,
    }
}

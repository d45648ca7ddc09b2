//! qcow2 and what its reads fall through to, by the library `imago`.
//!
//! The chain is the export's alone: a header's own backing name is not followed,
//! an external data file is refused. See `docs/decisions/0011-qcow2-imago.md` for
//! what the library does on flush and on errors.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use basin_model::Bytes;
use basin_model::volume::VolumeFormat;
use futures::executor::block_on;
use imago::format::PreallocateMode;
use imago::io_buffers::IoBuffer;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, StorageOpenOptions};

use super::lane::{Job, Lane};
use super::raw::open_file;
use super::{Block, DiskError, Reach, header};
use crate::control::{ErrorCode, Layer};
use crate::request::{Op, Range, SECTOR};

type Image = FormatAccess<imago::file::File>;

/// Data pass through a buffer of at most this: the guest can change its memory at
/// any time, and the library must not see it change.
const CHUNK: usize = 256 << 10;

/// An open qcow2 disk.
pub struct Qcow2Disk {
    image: Arc<RwLock<Image>>,
    size: AtomicU64,
    read_only: bool,
    lane: Lane,
}

impl Qcow2Disk {
    pub fn open(layers: &[Layer], read_only: bool) -> Result<Qcow2Disk, DiskError> {
        let mut below: Option<Image> = None;
        for (depth, layer) in layers.iter().enumerate().rev() {
            let writable = depth == 0 && !read_only;
            below = Some(open_layer(layer, writable, below.take())?);
        }
        let Some(image) = below else {
            return Err(DiskError::new(ErrorCode::Invalid, "a disk needs at least one layer"));
        };
        let size = AtomicU64::new(image.size() / SECTOR * SECTOR);
        let image = Arc::new(RwLock::new(image));
        let target = Arc::clone(&image);
        let lane = Lane::new(Box::new(move |job| execute(&target, job).map_err(|e| errno(&e))));
        Ok(Qcow2Disk { image, size, read_only, lane })
    }
}

impl Block for Qcow2Disk {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn reach(&self) -> Reach<'_> {
        Reach::Lane(&self.lane)
    }

    fn sync(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        flush(&self.image.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn grow(&self, size: Bytes) -> Result<u64, DiskError> {
        let mut image = self.image.write().unwrap_or_else(PoisonError::into_inner);
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

fn open_layer(layer: &Layer, writable: bool, below: Option<Image>) -> Result<Image, DiskError> {
    let path = layer.path.as_path();
    let (file, align) = open_file(path, !writable)?;
    let corrupt = |why: &str| {
        let message = format!("{} is not a usable image: {why}", path.display());
        DiskError::new(ErrorCode::Corrupt, message)
    };
    if layer.format == VolumeFormat::Qcow2 {
        let facts = read_header(&file).map_err(|why| corrupt(&why))?;
        if facts.has_backing && below.is_none() {
            return Err(corrupt("it needs a backing file, and the export names none"));
        }
        if !facts.size.is_multiple_of(SECTOR) {
            tracing::warn!(path = %path.display(), "the image's last part of a sector is not served");
        }
    } else if below.is_some() {
        let message = "a raw layer has nothing below it: only qcow2 reads fall through";
        return Err(DiskError::new(ErrorCode::Invalid, message));
    }
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
        Ok(Ok(image)) => Ok(image),
        Ok(Err(e)) if e.raw_os_error().is_some() => Err(super::raw::unreadable(path, &e)),
        Ok(Err(e)) => Err(corrupt(&e.to_string())),
        Err(_) => Err(corrupt("its metadata contradict each other")),
    }
}

/// Through the page cache, so that the length need not suit direct I/O.
fn read_header(file: &std::fs::File) -> Result<header::Facts, String> {
    #[repr(align(4096))]
    struct Block([u8; 4096]);
    let mut block = Block([0; 4096]);
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

fn execute(image: &RwLock<Image>, job: &Job) -> io::Result<()> {
    match job.op {
        Op::Discard | Op::WriteZeroes => {
            for range in &job.ranges {
                clear(image, job.op, *range)?;
            }
        }
        _ => {
            let image = image.read().unwrap_or_else(PoisonError::into_inner);
            match job.op {
                Op::Read | Op::Write => transfer(&image, job)?,
                Op::Flush => flush(&image)?,
                Op::GetId | Op::Discard | Op::WriteZeroes => {}
            }
        }
    }
    if job.durable {
        flush(&image.read().unwrap_or_else(PoisonError::into_inner))?;
    }
    Ok(())
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

//! Import of an image: take in, judge, check, convert, put in place.

use std::cell::Cell;
use std::fs::File;
use std::io::{Cursor, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use basin_model::Bytes;
use basin_model::image::{ImageContent, ImageKind, SourceFormat};
use basin_model::volume::VolumeFormat;
use bytes::Bytes as Chunk;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::fetch::{Fetch, Sink, parse_url};
use super::source::{ChunkReader, Failure, Hashed, channel, open_path};
use super::space::{OVERHEAD, Reservation};
use super::sparse::{fill, pour};
use super::stage::Staged;
use super::unpack::unpack;
use super::{Inner, images};
use crate::datastore::{ImportRequest, ImportSource, Progress, StorageError};
use crate::headers::Qcow2;
use crate::judge::{Plan, Refusal, Seen, check_size, judge};
use crate::probe::{Compression, HEAD, Looks, TAIL, looks};
use crate::qemu_img::{ImgError, Opened, QemuImg};
use crate::sandbox::spare_uid;

/// Where the bytes come from.
pub enum Origin {
    File { file: File, length: Bytes, occupied: Bytes },
    Upload { path: PathBuf, file: File, length: Bytes },
    Stream { reader: ChunkReader, length: oneshot::Receiver<Option<Bytes>> },
}

/// What runs beside an import and feeds it, if anything must.
pub struct Feed(Option<(Fetch, Sink)>);

impl Feed {
    /// Feeds until the end, or says that it was cancelled.
    pub async fn run(self, cancel: &CancellationToken) {
        let Some((fetch, sink)) = self.0 else { return };
        let chunks: mpsc::Sender<Result<Chunk, StorageError>> = sink.chunks.clone();
        tokio::select! {
            biased;
            () = cancel.cancelled() => {
                // Nobody listens any more when the import has noticed by itself.
                let _ = chunks.send(Err(StorageError::Cancelled)).await;
            }
            () = fetch.run(sink) => {}
        }
    }
}

/// Opens the source; refuses what can be refused before anything is read.
pub async fn prepare(
    inner: &Inner,
    request: &ImportRequest,
) -> Result<(Feed, Origin), StorageError> {
    if let Some(sha256) = &request.sha256
        && (sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_hexdigit()))
    {
        return Err(StorageError::Invalid(format!(
            "'{sha256}' is not a SHA-256 checksum: it has 64 hex digits"
        )));
    }
    let from = match &request.source {
        ImportSource::Path { path } => {
            let (file, length, occupied) = open_path(path)?;
            Origin::File { file, length, occupied }
        }
        ImportSource::Upload { upload } => {
            let (path, file, length) = images::open_upload(inner, *upload)?;
            Origin::Upload { path, file, length }
        }
        ImportSource::Url { url } => {
            let url = parse_url(url)?;
            let (chunks, reader) = channel();
            let (known, length) = oneshot::channel();
            let fetch = Fetch { url, patience: inner.patience, checked: request.sha256.is_some() };
            let feed = Feed(Some((fetch, Sink { length: known, chunks })));
            return Ok((feed, Origin::Stream { reader, length }));
        }
    };
    Ok((Feed(None), from))
}

/// One import on its way.
struct Import<'a> {
    inner: &'a Inner,
    request: &'a ImportRequest,
    progress: &'a Progress,
    cancel: &'a CancellationToken,
    what: String,
    /// Every byte counts once when it is read and once when it is converted.
    weight: Cell<u64>,
}

/// The source's bytes, unpacked, in `incoming/`.
struct Taken {
    staged: Staged,
    /// Holds its room until the image is in place.
    _room: Option<Reservation>,
    head: Vec<u8>,
    sha256: String,
    source: Bytes,
}

pub fn import(
    inner: &Inner,
    request: &ImportRequest,
    from: Origin,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<ImageContent, StorageError> {
    if let Some(content) = images::find(inner, request.image)? {
        return Ok(content);
    }
    let what = match &request.source {
        ImportSource::Path { path } => path.display().to_string(),
        ImportSource::Url { .. } => "the file at the URL".into(),
        ImportSource::Upload { .. } => "the uploaded file".into(),
    };
    let import = Import { inner, request, progress, cancel, what, weight: Cell::new(1) };
    let upload = match &from {
        Origin::Upload { path, .. } => Some(path.clone()),
        _ => None,
    };
    let taken = import.take(from)?;
    let content = import.finish(taken)?;
    if let Some(upload) = upload {
        // It would be swept in a day; the image is there either way.
        let _ = super::stage::remove(&upload);
    }
    Ok(content)
}

impl Import<'_> {
    fn refused(&self, refusal: Refusal) -> StorageError {
        match refusal {
            Refusal::Unfit(why) => {
                StorageError::Invalid(format!("{} cannot be imported: {why}", self.what))
            }
            Refusal::Damaged(why) => StorageError::Corrupt { what: self.what.clone(), why },
        }
    }

    fn img_error(&self, e: ImgError, needed: Bytes) -> StorageError {
        match e {
            ImgError::Cancelled => StorageError::Cancelled,
            ImgError::Full => self.inner.space.full(needed),
            ImgError::Refused(why) => StorageError::Corrupt { what: self.what.clone(), why },
            ImgError::Io(source) => StorageError::Io { what: "running qemu-img".into(), source },
        }
    }

    /// Reads the whole source into `incoming/`; judges it by its beginning first.
    fn take(&self, from: Origin) -> Result<Taken, StorageError> {
        let mut failure = Failure::default();
        let (reader, length, occupied, upload): (Box<dyn Read>, _, _, _) = match from {
            Origin::File { file, length, occupied } => {
                (Box::new(file), Some(length), occupied.min(length), None)
            }
            Origin::Upload { path, file, length } => {
                (Box::new(file), Some(length), length, Some(path))
            }
            Origin::Stream { reader, length } => {
                failure = reader.failure();
                // No answer means that there is an error to read instead.
                let length = length.blocking_recv().unwrap_or(None);
                (Box::new(reader), length, length.unwrap_or_default(), None)
            }
        };
        let seen = |count: u64| {
            let total = length.map(|l| Bytes(l.get().saturating_mul(self.weight.get())));
            (self.progress)(Bytes(count), total);
        };
        let mut hashed = Hashed::new(reader, Box::new(seen));
        let packed = Cell::new(None);
        let mut explain = |source: std::io::Error| match (failure.take(), packed.get()) {
            (Some(e), _) => e,
            (None, Some(compression)) => StorageError::Corrupt {
                what: self.what.clone(),
                why: format!("it cannot be unpacked as {compression:?}: {source}"),
            },
            (None, None) => StorageError::Io { what: format!("reading {}", self.what), source },
        };
        let mut start = vec![0; HEAD];
        let n = fill(&mut hashed, &mut start).map_err(&mut explain)?;
        start.truncate(n);
        let compression = self.compression(&start);
        packed.set(compression);
        let whole = Cursor::new(start).chain(&mut hashed);
        let mut plain: Box<dyn Read> = match compression {
            Some(compression) => unpack(compression, whole),
            None => Box::new(whole),
        };
        let mut head = vec![0; HEAD];
        let n = fill(&mut plain, &mut head).map_err(&mut explain)?;
        head.truncate(n);
        let plan = self.judge(&head, None)?;
        self.weight.set(if matches!(plan, Plan::Convert(_)) { 2 } else { 1 });

        let (staged, room) = match upload {
            // It is in the datastore already; only its hash is wanted.
            Some(path) if compression.is_none() => {
                self.drain(&mut plain, &mut explain)?;
                (Staged::link(&self.inner.layout, &self.inner.space, &path)?, None)
            }
            _ => {
                let staged = Staged::new(&self.inner.layout, &self.inner.space)?;
                let room = self.inner.space.reserve(occupied + OVERHEAD, &staged.path)?;
                let mut all = Cursor::new(&head).chain(&mut plain);
                let space = &self.inner.space;
                pour(&mut all, &staged.file, space, &room, self.cancel, &mut explain)?;
                (staged, Some(room))
            }
        };
        drop(plain);
        // What follows the compressed data is part of the source, and of its hash.
        self.drain(&mut hashed, &mut explain)?;
        let (sha256, source) = hashed.finish();
        if let Some(expected) = &self.request.sha256
            && !expected.eq_ignore_ascii_case(&sha256)
        {
            return Err(StorageError::Checksum {
                what: self.what.clone(),
                expected: expected.to_ascii_lowercase(),
                found: sha256,
            });
        }
        Ok(Taken { staged, _room: room, head, sha256, source })
    }

    /// Kernels and initrds are compressed by nature; the others are unpacked.
    fn compression(&self, start: &[u8]) -> Option<Compression> {
        match (self.request.kind, looks(start, None)) {
            (ImageKind::Disk | ImageKind::Iso, Looks::Compressed(compression)) => Some(compression),
            _ => None,
        }
    }

    fn drain(
        &self,
        from: &mut dyn Read,
        explain: &mut dyn FnMut(std::io::Error) -> StorageError,
    ) -> Result<(), StorageError> {
        let mut block = vec![0; HEAD];
        while fill(from, &mut block).map_err(&mut *explain)? > 0 {
            if self.cancel.is_cancelled() {
                return Err(StorageError::Cancelled);
            }
        }
        Ok(())
    }

    fn judge(&self, head: &[u8], end: Option<(u64, &[u8])>) -> Result<Plan, StorageError> {
        judge(self.request.kind, self.request.format, Seen { head, end })
            .map_err(|refusal| self.refused(refusal))
    }

    /// Origin the plain bytes to the image.
    fn finish(&self, taken: Taken) -> Result<ImageContent, StorageError> {
        let (length, tail) = self.end(&taken.staged.file)?;
        let content = |format, virtual_size, file_size| ImageContent {
            format,
            virtual_size,
            file_size,
            sha256: taken.sha256.clone(),
        };
        let (staged, content) = match self.judge(&taken.head, Some((length, &tail)))? {
            Plan::Keep => {
                let length = Bytes(length);
                (taken.staged, content(VolumeFormat::Raw, length, length))
            }
            Plan::KeepQcow2 => {
                self.verify(&taken)?;
                let header = Qcow2::parse(&taken.head).map_err(|r| self.refused(r))?;
                let content = content(VolumeFormat::Qcow2, Bytes(header.size), Bytes(length));
                (taken.staged, content)
            }
            Plan::Convert(format) => {
                let (staged, size) = self.convert(&taken, format, Bytes(length))?;
                let (length, _) = self.end(&staged.file)?;
                (staged, content(VolumeFormat::Qcow2, size, Bytes(length)))
            }
        };
        if self.cancel.is_cancelled() {
            return Err(StorageError::Cancelled);
        }
        images::publish(self.inner, self.request.image, self.request.kind, staged, &content)?;
        Ok(content)
    }

    fn end(&self, file: &File) -> Result<(u64, Vec<u8>), StorageError> {
        let failed = |source| StorageError::Io { what: format!("reading {}", self.what), source };
        let length = file.metadata().map_err(failed)?.len();
        let tail_length = length.min(TAIL as u64);
        let mut tail = vec![0; tail_length as usize];
        file.read_exact_at(&mut tail, length - tail_length).map_err(failed)?;
        Ok((length, tail))
    }

    /// Checks the qcow2's tables, and that every byte of it can be read.
    fn verify(&self, taken: &Taken) -> Result<(), StorageError> {
        let failed = |e| self.img_error(e, Bytes::ZERO);
        let image = self.opened(taken, SourceFormat::Qcow2)?;
        let (qemu, _) = self.qemu_img(&taken.staged)?;
        let size = qemu.virtual_size(&image).map_err(failed)?;
        qemu.check(&image).map_err(failed)?;
        qemu.read_through(&image, size, &mut |_| ()).map_err(failed)
    }

    fn convert(
        &self,
        taken: &Taken,
        format: SourceFormat,
        length: Bytes,
    ) -> Result<(Staged, Bytes), StorageError> {
        let failed = |e| self.img_error(e, Bytes::ZERO);
        let image = self.opened(taken, format)?;
        let (qemu, uid) = self.qemu_img(&taken.staged)?;
        let size = match format {
            SourceFormat::Raw => length,
            _ => {
                let size = qemu.virtual_size(&image).map_err(failed)?;
                check_size(size.get()).map_err(|r| self.refused(r))?;
                qemu.check(&image).map_err(failed)?;
                size
            }
        };
        let needed = qemu.measure(&image).map_err(failed)? + OVERHEAD;
        let target = Staged::new(&self.inner.layout, &self.inner.space)?;
        let _room = self.inner.space.reserve(needed, &target.path)?;
        target.lend(uid, &self.inner.space)?;
        let source = taken.source.get();
        let mut percent = |p: f64| {
            let done = source.saturating_add((source as f64 * p / 100.0) as u64);
            (self.progress)(Bytes(done), Some(Bytes(source.saturating_mul(2))));
        };
        qemu.convert(&image, "qcow2", target.file.as_fd(), size, &mut percent)
            .map_err(|e| self.img_error(e, needed))?;
        let mut head = vec![0; 512];
        target.file.read_exact_at(&mut head, 0).map_err(|source| StorageError::Io {
            what: "reading the converted image".into(),
            source,
        })?;
        let header = Qcow2::parse(&head).map_err(|r| self.refused(r))?;
        Ok((target, Bytes(header.size)))
    }

    fn opened(&self, taken: &Taken, format: SourceFormat) -> Result<[Opened; 1], StorageError> {
        let file = File::open(&taken.staged.path).map_err(|source| StorageError::Io {
            what: format!("reading {}", self.what),
            source,
        })?;
        Ok([Opened { file: OwnedFd::from(file), driver: format.as_str() }])
    }

    fn qemu_img(&self, of: &Staged) -> Result<(QemuImg<'_>, Option<u32>), StorageError> {
        let uid = spare_uid();
        of.lend(uid, &self.inner.space)?;
        Ok((QemuImg { uid, cancel: self.cancel }, uid))
    }
}

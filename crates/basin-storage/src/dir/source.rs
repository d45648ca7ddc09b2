//! The bytes of a source as a plain reader, hashed as they go by.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use basin_model::Bytes;
use bytes::{Buf, Bytes as Chunk, BytesMut};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;

use crate::datastore::StorageError;

/// Opens a file that an administrator named. Only a regular file: anything else
/// may block or never end.
pub fn open_path(path: &Path) -> Result<(File, Bytes, Bytes), StorageError> {
    let name = path.display();
    if !path.is_absolute() {
        return Err(StorageError::Invalid(format!("{name} is not an absolute path")));
    }
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(path)
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => StorageError::NotFound(name.to_string()),
            _ => StorageError::Io { what: format!("opening {name}"), source },
        })?;
    let about = file
        .metadata()
        .map_err(|source| StorageError::Io { what: format!("opening {name}"), source })?;
    if !about.is_file() {
        return Err(StorageError::Invalid(format!("{name} is not a regular file")));
    }
    Ok((file, Bytes(about.len()), Bytes(about.blocks().saturating_mul(512))))
}

/// Reads what an async task sends; an empty chunk is the end. An error that it sends is kept for the one
/// who asks [`ChunkReader::failure`], since a reader can only say that it failed.
pub struct ChunkReader {
    chunks: mpsc::Receiver<Result<Chunk, StorageError>>,
    current: Chunk,
    failure: Failure,
    ended: bool,
}

/// Why a [`ChunkReader`] failed.
#[derive(Clone, Default)]
pub struct Failure(Arc<Mutex<Option<StorageError>>>);

impl Failure {
    pub fn take(&self) -> Option<StorageError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn set(&self, e: StorageError) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
    }
}

impl ChunkReader {
    pub fn new(chunks: mpsc::Receiver<Result<Chunk, StorageError>>) -> ChunkReader {
        ChunkReader { chunks, current: Chunk::new(), failure: Failure::default(), ended: false }
    }

    pub fn failure(&self) -> Failure {
        self.failure.clone()
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.chunks.blocking_recv() {
                Some(Ok(chunk)) if chunk.is_empty() => {
                    self.ended = true;
                    return Ok(0);
                }
                Some(Ok(chunk)) => self.current = chunk,
                Some(Err(e)) => {
                    let text = e.to_string();
                    self.failure.set(e);
                    return Err(io::Error::other(text));
                }
                // The sender is gone without a word: this is not the whole.
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let n = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..n]);
        Ok(n)
    }
}

/// Hashes and counts what is read through it.
pub struct Hashed<'a> {
    inner: Box<dyn Read + 'a>,
    hash: Sha256,
    count: u64,
    seen: Box<dyn FnMut(u64) + 'a>,
}

impl<'a> Hashed<'a> {
    /// `seen` is told the count after every read.
    pub fn new(inner: Box<dyn Read + 'a>, seen: Box<dyn FnMut(u64) + 'a>) -> Hashed<'a> {
        Hashed { inner, hash: Sha256::new(), count: 0, seen }
    }

    /// The hash in hex, and how many bytes it is of.
    pub fn finish(self) -> (String, Bytes) {
        (hex(&self.hash.finalize()), Bytes(self.count))
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

impl Read for Hashed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hash.update(&buffer[..n]);
        self.count += n as u64;
        (self.seen)(self.count);
        Ok(n)
    }
}

/// The two ends of a stream between an async task and a thread.
pub fn channel() -> (mpsc::Sender<Result<Chunk, StorageError>>, ChunkReader) {
    let (sender, receiver) = mpsc::channel(16);
    (sender, ChunkReader::new(receiver))
}

/// Sends all of `from`, then the end.
pub async fn pump(
    from: &mut (dyn AsyncRead + Send + Unpin),
    to: mpsc::Sender<Result<Chunk, StorageError>>,
) {
    loop {
        let mut buffer = BytesMut::with_capacity(256 << 10);
        let piece = match from.read_buf(&mut buffer).await {
            Ok(_) => Ok(buffer.freeze()),
            Err(source) => Err(StorageError::Io { what: "receiving the upload".into(), source }),
        };
        let last = !matches!(&piece, Ok(chunk) if !chunk.is_empty());
        if to.send(piece).await.is_err() || last {
            return;
        }
    }
}

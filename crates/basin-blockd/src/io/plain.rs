//! A disk for callers that may block: NBD and the mirror. Queues do not go this way.

use std::io;

/// A part of a disk with the same kind of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub len: u64,
    /// Reads as zeros, and takes no space.
    pub zero: bool,
}

/// Requests of whole sectors within the disk, carried out by the calling thread.
/// Writes are as safe against the death of this process as a guest's.
pub trait Plain {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// With `unmap` the space may be given back.
    fn zero_at(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;
    /// What was written is on stable storage.
    fn sync(&self) -> io::Result<()>;
    /// What is where, from `offset` on: at least one extent, together at most `len`
    /// bytes, at most `most` extents. What cannot be told is not zero.
    fn extents(&self, offset: u64, len: u64, most: usize) -> io::Result<Vec<Extent>>;
}

/// Appends, joining equal neighbours.
pub fn push(extents: &mut Vec<Extent>, next: Extent) {
    match extents.last_mut() {
        _ if next.len == 0 => {}
        Some(last) if last.zero == next.zero => last.len += next.len,
        _ => extents.push(next),
    }
}

/// Memory that direct I/O takes, zeroed.
pub struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// No device asks for more.
    const ALIGN: usize = 4096;

    pub fn new(len: usize) -> Aligned {
        let bytes = vec![0; len + Self::ALIGN];
        let start = bytes.as_ptr().align_offset(Self::ALIGN);
        Aligned { bytes, start, len }
    }
}

impl std::ops::Deref for Aligned {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl std::ops::DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

impl AsRef<[u8]> for Aligned {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

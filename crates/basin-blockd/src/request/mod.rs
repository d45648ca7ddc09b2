//! Pure. From a descriptor chain to a request that is safe to carry out.
//!
//! The layout (virtio 1.2, 5.2.6): a header of 16 readable bytes (type, reserved,
//! sector), data, one writable status byte. How the parts are cut into
//! descriptors is the driver's business, so they are found by byte, not by
//! descriptor. What comes out lies within the disk, is whole sectors, and has an
//! address for its status.

pub mod chain;

#[cfg(test)]
mod tests;

use chain::{Chain, ChainError, Segment, Source};

pub const SECTOR: u64 = 512;
/// What the configuration space promises for discard and write-zeroes.
pub const MAX_RANGES: usize = 16;
pub const MAX_RANGE_SECTORS: u32 = 1 << 22;
/// The serial number's length on the wire.
pub const ID_LEN: u64 = 20;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
    GetId,
}

impl Op {
    /// Does it change the disk, or make changes durable?
    pub fn changes(self) -> bool {
        !matches!(self, Op::Read | Op::GetId)
    }
}

/// The answer's last byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// A part of a disk to discard or zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub offset: u64,
    pub len: u64,
    /// Zeroing may free the space.
    pub unmap: bool,
}

/// What a request is checked against.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub capacity: u64,
    pub read_only: bool,
}

/// A request. Its data segments and ranges are in the [`Parser`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    pub op: Op,
    pub offset: u64,
    /// Bytes of data, in the direction of `op`.
    pub len: u64,
    /// Where the status byte belongs.
    pub status: u64,
}

/// A request that is not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is a place for the answer.
    Answer {
        status: Status,
        at: u64,
        why: &'static str,
    },
    /// There is none: the queue cannot go on.
    Fatal(ChainError),
    NoStatus,
}

/// Buffers that are reused from request to request.
#[derive(Debug, Default)]
pub struct Parser {
    chain: Chain,
    pub data: Vec<Segment>,
    pub ranges: Vec<Range>,
}

impl Parser {
    pub fn parse(
        &mut self,
        source: &impl Source,
        head: u16,
        limits: Limits,
    ) -> Result<Request, Refusal> {
        self.data.clear();
        self.ranges.clear();
        self.chain.walk(source, head).map_err(Refusal::Fatal)?;
        let Chain { readable, writable } = &mut self.chain;
        let at = cut_last_byte(writable).ok_or(Refusal::NoStatus)?;
        let refuse = |status, why| Refusal::Answer { status, at, why };
        let ioerr = |why| refuse(Status::IoError, why);

        let mut header = [0; 16];
        gather(source, readable, &mut header).map_err(ioerr)?;
        cut_front(readable, 16);
        let [k0, k1, k2, k3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] = header;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let op = match u32::from_le_bytes([k0, k1, k2, k3]) {
            0 => Op::Read,
            1 => Op::Write,
            4 => Op::Flush,
            8 => Op::GetId,
            11 => Op::Discard,
            13 => Op::WriteZeroes,
            _ => return Err(refuse(Status::Unsupported, "an unknown type")),
        };
        if limits.read_only && matches!(op, Op::Write | Op::Discard | Op::WriteZeroes) {
            return Err(ioerr("a write to a read-only disk"));
        }
        let request = |offset, len| Request { op, offset, len, status: at };
        match op {
            Op::Read | Op::Write => {
                let segments = if op == Op::Read { writable } else { readable };
                self.data.extend(segments.iter().filter(|s| s.len > 0));
                let len = self.data.iter().map(|s| s.len).sum();
                let offset = within(sector, len, limits).map_err(ioerr)?;
                Ok(request(offset, len))
            }
            Op::Flush => Ok(request(0, 0)),
            Op::GetId => {
                self.data.extend(writable.iter().filter(|s| s.len > 0));
                let len = self.data.iter().map(|s| s.len).sum();
                Ok(request(0, len))
            }
            Op::Discard | Op::WriteZeroes => {
                self.read_ranges(source, op, limits)
                    .map_err(|(status, why)| refuse(status, why))?;
                Ok(request(0, self.ranges.iter().map(|r| r.len).sum()))
            }
        }
    }

    fn read_ranges(
        &mut self,
        source: &impl Source,
        op: Op,
        limits: Limits,
    ) -> Result<(), (Status, &'static str)> {
        let ioerr = |why| (Status::IoError, why);
        let readable = &self.chain.readable;
        let len: u64 = readable.iter().map(|s| s.len).sum();
        let count = (len / 16) as usize;
        if len == 0 || !len.is_multiple_of(16) || count > MAX_RANGES {
            return Err(ioerr("a bad number of ranges"));
        }
        let mut bytes = [0; 16 * MAX_RANGES];
        let bytes = &mut bytes[..16 * count];
        gather(source, readable, bytes).map_err(ioerr)?;
        for b in bytes.chunks_exact(16) {
            let word = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
            let sector = u64::from(word(0)) | u64::from(word(4)) << 32;
            let (sectors, flags) = (word(8), word(12));
            // Only write-zeroes knows a flag: unmap.
            if flags & !u32::from(op == Op::WriteZeroes) != 0 {
                return Err((Status::Unsupported, "unknown flags of a range"));
            }
            if sectors > MAX_RANGE_SECTORS {
                return Err(ioerr("a range that is too long"));
            }
            let len = u64::from(sectors) * SECTOR;
            let offset = within(sector, len, limits).map_err(ioerr)?;
            self.ranges.push(Range { offset, len, unmap: flags & 1 != 0 });
        }
        Ok(())
    }
}

/// The byte offset of `len` bytes at `sector`, if they are on the disk.
fn within(sector: u64, len: u64, limits: Limits) -> Result<u64, &'static str> {
    if len == 0 {
        return Err("a request of no bytes");
    }
    if !len.is_multiple_of(SECTOR) {
        return Err("a part of a sector");
    }
    let offset = sector.checked_mul(SECTOR).ok_or("a sector past the end of the disk")?;
    match offset.checked_add(len) {
        Some(end) if end <= limits.capacity => Ok(offset),
        _ => Err("a request past the end of the disk"),
    }
}

/// Takes the last byte off; its address.
fn cut_last_byte(segments: &mut [Segment]) -> Option<u64> {
    let last = segments.iter_mut().rev().find(|s| s.len > 0)?;
    last.len -= 1;
    Some(last.addr.wrapping_add(last.len))
}

/// Takes `n` bytes off the front.
fn cut_front(segments: &mut [Segment], mut n: u64) {
    for s in segments {
        let cut = n.min(s.len);
        s.addr = s.addr.wrapping_add(cut);
        s.len -= cut;
        n -= cut;
    }
}

/// Copies the first bytes of `segments`.
fn gather(
    source: &impl Source,
    segments: &[Segment],
    mut buf: &mut [u8],
) -> Result<(), &'static str> {
    for s in segments {
        let n = (buf.len() as u64).min(s.len) as usize;
        let (part, rest) = buf.split_at_mut(n);
        if !source.read(s.addr, part) {
            return Err("a header outside of the guest's memory");
        }
        buf = rest;
    }
    if buf.is_empty() { Ok(()) } else { Err("a request without a header") }
}

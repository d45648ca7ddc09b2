//! Pure. Descriptor chains: from a head to the bytes the device may read and write.
//!
//! A chain is the guest's word and is believed nothing: its length is bounded (so
//! loops end), indirect tables may not nest, what the device writes must come
//! after what it reads. Each descriptor is read exactly once.

/// Where descriptors and guest memory come from.
pub trait Source {
    /// A descriptor of the ring's table; `None` outside of it.
    fn descriptor(&self, index: u16) -> Option<Descriptor>;
    /// Copies guest memory; false if any of it is not the guest's.
    fn read(&self, addr: u64, buf: &mut [u8]) -> bool;
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// One element of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Descriptor {
    pub fn from_bytes(b: &[u8; 16]) -> Descriptor {
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = *b;
        Descriptor {
            addr: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }
}

/// Bytes of the guest; they need not exist, and may even wrap around.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub addr: u64,
    pub len: u64,
}

/// Why a chain is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    #[error("a chain of more than {} descriptors", Chain::MAX)]
    TooLong,
    #[error("a descriptor outside of its table")]
    OutsideTable,
    #[error("a bad indirect table")]
    Indirect,
    #[error("a table outside of the guest's memory")]
    Unreadable,
    #[error("a readable descriptor after a writable one")]
    Order,
}

/// A walked chain. Reused from request to request.
#[derive(Debug, Default)]
pub struct Chain {
    pub readable: Vec<Segment>,
    pub writable: Vec<Segment>,
}

impl Chain {
    /// Longer chains are refused; Linux' `UIO_MAXIOV`.
    pub const MAX: usize = 1024;

    fn add(&mut self, d: Descriptor) -> Result<(), ChainError> {
        if self.readable.len() + self.writable.len() >= Chain::MAX {
            return Err(ChainError::TooLong);
        }
        let segment = Segment { addr: d.addr, len: u64::from(d.len) };
        if d.flags & WRITE != 0 {
            self.writable.push(segment);
        } else if self.writable.is_empty() {
            self.readable.push(segment);
        } else {
            return Err(ChainError::Order);
        }
        Ok(())
    }

    /// Follows the chain that starts at `head`. What was walked up to an error stays.
    pub fn walk(&mut self, source: &impl Source, head: u16) -> Result<(), ChainError> {
        self.readable.clear();
        self.writable.clear();
        let mut index = head;
        loop {
            let d = source.descriptor(index).ok_or(ChainError::OutsideTable)?;
            if d.flags & INDIRECT != 0 {
                // An indirect table ends the chain.
                return if d.flags & NEXT == 0 {
                    self.walk_table(source, d)
                } else {
                    Err(ChainError::Indirect)
                };
            }
            self.add(d)?;
            if d.flags & NEXT == 0 {
                return Ok(());
            }
            index = d.next;
        }
    }

    fn walk_table(&mut self, source: &impl Source, table: Descriptor) -> Result<(), ChainError> {
        if table.len == 0 || !table.len.is_multiple_of(16) {
            return Err(ChainError::Indirect);
        }
        let count = table.len / 16;
        let mut index = 0u16;
        loop {
            if u32::from(index) >= count {
                return Err(ChainError::OutsideTable);
            }
            let mut bytes = [0; 16];
            let at = table.addr.wrapping_add(16 * u64::from(index));
            if !source.read(at, &mut bytes) {
                return Err(ChainError::Unreadable);
            }
            let d = Descriptor::from_bytes(&bytes);
            if d.flags & INDIRECT != 0 {
                return Err(ChainError::Indirect);
            }
            self.add(d)?;
            if d.flags & NEXT == 0 {
                return Ok(());
            }
            index = d.next;
        }
    }
}

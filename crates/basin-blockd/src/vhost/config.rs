//! Pure. The configuration space of a virtio block device (virtio 1.2, 5.2.4) and
//! the features that go with it.
//!
//! `CONFIG_WCE` is not offered: the mode would live in this process alone, and a
//! restart would lose it silently. A driver that knows `FLUSH` gets a write-back
//! cache, one that does not gets every write stable.

use crate::request::{MAX_RANGE_SECTORS, MAX_RANGES, SECTOR};

/// Data segments of a request, as QEMU's own devices have with 128 descriptors.
const SEG_MAX: u32 = 126;
const LEN: usize = 60;

mod bit {
    pub const SEG_MAX: u32 = 2;
    pub const RO: u32 = 5;
    pub const BLK_SIZE: u32 = 6;
    pub const FLUSH: u32 = 9;
    pub const TOPOLOGY: u32 = 10;
    pub const MQ: u32 = 12;
    pub const DISCARD: u32 = 13;
    pub const WRITE_ZEROES: u32 = 14;
    pub const INDIRECT: u32 = 28;
    pub const EVENT_IDX: u32 = 29;
    pub const VERSION_1: u32 = 32;
    pub const LOG_ALL: u32 = 26;
    pub const PROTOCOL: u32 = 30;
}

pub const FLUSH: u64 = 1 << bit::FLUSH;
pub const EVENT_IDX: u64 = 1 << bit::EVENT_IDX;
pub const LOG_ALL: u64 = 1 << bit::LOG_ALL;
/// The front end speaks of protocol features; rings start disabled.
pub const PROTOCOL: u64 = 1 << bit::PROTOCOL;

/// What a disk offers.
pub fn features(read_only: bool) -> u64 {
    let always = [
        bit::SEG_MAX,
        bit::BLK_SIZE,
        bit::FLUSH,
        bit::TOPOLOGY,
        bit::MQ,
        bit::INDIRECT,
        bit::EVENT_IDX,
        bit::VERSION_1,
        bit::LOG_ALL,
        bit::PROTOCOL,
    ];
    let more: &[u32] = if read_only { &[bit::RO] } else { &[bit::DISCARD, bit::WRITE_ZEROES] };
    always.iter().chain(more).fold(0, |all, b| all | 1 << b)
}

/// `len` bytes at `offset` of the space of a disk of `capacity` bytes; zeros past its end.
pub fn read(capacity: u64, queues: u16, offset: usize, len: usize) -> Vec<u8> {
    let mut space = [0u8; LEN];
    let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(capacity / SECTOR).to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &(SECTOR as u32).to_le_bytes());
    // A physical block of 4 KiB: guests align to it, smaller writes still work.
    put(24, &[3]);
    put(26, &8u16.to_le_bytes());
    put(34, &queues.to_le_bytes());
    put(36, &MAX_RANGE_SECTORS.to_le_bytes());
    put(40, &(MAX_RANGES as u32).to_le_bytes());
    put(44, &8u32.to_le_bytes());
    put(48, &MAX_RANGE_SECTORS.to_le_bytes());
    put(52, &(MAX_RANGES as u32).to_le_bytes());
    put(56, &[1]);
    (offset..offset.saturating_add(len)).map(|at| space.get(at).copied().unwrap_or(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capacity_is_in_sectors() {
        assert_eq!(read(1 << 30, 4, 0, 8), (1u64 << 21).to_le_bytes());
        assert_eq!(read(1 << 30, 4, 34, 2), 4u16.to_le_bytes());
    }

    #[test]
    fn any_window_has_the_length_asked_for() {
        assert_eq!(read(1 << 30, 1, 0, 256).len(), 256);
        assert_eq!(read(1 << 30, 1, 4000, 16), [0; 16]);
    }

    #[test]
    fn a_read_only_disk_offers_nothing_that_writes() {
        let lost = features(false) & !features(true);
        assert_eq!(lost, 1 << bit::DISCARD | 1 << bit::WRITE_ZEROES);
        assert_eq!(features(true) & !features(false), 1 << bit::RO);
    }
}

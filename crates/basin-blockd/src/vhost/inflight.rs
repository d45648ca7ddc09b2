//! The record of requests taken and not yet answered, in memory that the front
//! end keeps while this process dies (vhost-user, "Inflight I/O tracking").
//!
//! Each queue has a header and an entry a descriptor (all little-endian here, as
//! on every machine Basin runs on):
//!
//! ```text
//! header  features u64 | version u16 | desc_num u16 | last_batch_head u16 | used_idx u16
//! entry   inflight u8 | padding [u8; 5] | next u16 | counter u64
//! ```
//!
//! Taking a request sets its `counter` (the order of arrival), then `inflight`.
//! Answering a batch: each entry is chained into a list (`next`,
//! `last_batch_head`), the used ring's index is raised, which is the moment the
//! guest sees the answers, then `inflight` is cleared and `used_idx` follows. A
//! process that dies in between leaves `used_idx` behind the ring's index, and
//! the list tells its successor which answers the guest has already seen.
//! What is still marked then was never answered and is done again, in order.
//!
//! The front end can write here too, so nothing read back is trusted: heads are
//! checked, lists are walked for a bounded number of steps.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering, fence};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{MmapRegion, VolatileMemory};

use super::vring::MAX_RING;

const HEADER: usize = 16;
const ENTRY: usize = 16;
const VERSION: u16 = 1;
/// Queues do not share a cache line.
const ALIGN: usize = 64;

/// Bytes that all queues take. There is room for the largest ring whatever size
/// the front end names: QEMU names its own default, and a guest on virtio-mmio
/// then makes a ring of 1024.
pub fn area_len(queues: u16) -> u64 {
    let stride = (HEADER + ENTRY * usize::from(MAX_RING)).next_multiple_of(ALIGN);
    (stride * usize::from(queues)) as u64
}

/// New tracking memory, all zero, that can neither grow nor shrink.
pub fn create(queues: u16) -> io::Result<File> {
    let flags = MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_CLOEXEC;
    let file = File::from(memfd_create("basin-inflight", flags)?);
    file.set_len(area_len(queues))?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file)
}

/// The tracking memory of all queues of a disk.
#[derive(Clone)]
pub struct InflightArea {
    map: Arc<MmapRegion<()>>,
    queues: u16,
    stride: usize,
}

impl InflightArea {
    /// The memory, shared evenly. The layout is ours: the front end only keeps it.
    pub fn new(map: MmapRegion<()>, queues: u16) -> Option<InflightArea> {
        let stride = map.size().checked_div(queues.into())? / ALIGN * ALIGN;
        (stride >= HEADER + ENTRY).then(|| InflightArea { map: Arc::new(map), queues, stride })
    }

    /// The record of one queue of `size` descriptors.
    pub fn queue(&self, index: u16, size: u16) -> Option<QueueInflight> {
        let fits = HEADER + ENTRY * usize::from(size) <= self.stride;
        (index < self.queues && fits).then(|| QueueInflight {
            map: Arc::clone(&self.map),
            base: self.stride * usize::from(index),
            size,
            counter: 0,
        })
    }
}

/// The record of one queue.
pub struct QueueInflight {
    map: Arc<MmapRegion<()>>,
    base: usize,
    size: u16,
    counter: u64,
}

impl QueueInflight {
    fn u16_at(&self, offset: usize) -> &AtomicU16 {
        self.map.get_atomic_ref(self.base + offset).expect("within the checked area")
    }
    fn version(&self) -> &AtomicU16 {
        self.u16_at(8)
    }
    fn desc_num(&self) -> &AtomicU16 {
        self.u16_at(10)
    }
    fn last_batch_head(&self) -> &AtomicU16 {
        self.u16_at(12)
    }
    fn used_idx(&self) -> &AtomicU16 {
        self.u16_at(14)
    }
    fn inflight(&self, head: u16) -> &AtomicU8 {
        let at = self.base + HEADER + ENTRY * usize::from(head);
        self.map.get_atomic_ref(at).expect("within the checked area")
    }
    fn next(&self, head: u16) -> &AtomicU16 {
        self.u16_at(HEADER + ENTRY * usize::from(head) + 6)
    }
    fn counter_of(&self, head: u16) -> &AtomicU64 {
        let at = self.base + HEADER + ENTRY * usize::from(head) + 8;
        self.map.get_atomic_ref(at).expect("within the checked area")
    }

    /// Makes the record fit the ring, whose used index is `used`, and returns the
    /// heads that were taken and never answered, oldest first.
    pub fn recover(&mut self, used: u16) -> Vec<u16> {
        let fresh = self.version().load(Ordering::Acquire) != VERSION
            || self.desc_num().load(Ordering::Relaxed) != self.size;
        if fresh {
            for head in 0..self.size {
                self.inflight(head).store(0, Ordering::Relaxed);
            }
            self.desc_num().store(self.size, Ordering::Relaxed);
            self.last_batch_head().store(0, Ordering::Relaxed);
            self.used_idx().store(used, Ordering::Relaxed);
            self.version().store(VERSION, Ordering::Release);
            return Vec::new();
        }
        let answered = used.wrapping_sub(self.used_idx().load(Ordering::Relaxed));
        let mut head = self.last_batch_head().load(Ordering::Relaxed);
        for _ in 0..answered.min(self.size) {
            if head >= self.size {
                break;
            }
            self.inflight(head).store(0, Ordering::Relaxed);
            head = self.next(head).load(Ordering::Relaxed);
        }
        fence(Ordering::Release);
        self.used_idx().store(used, Ordering::Relaxed);
        let mut open: Vec<(u64, u16)> = (0..self.size)
            .filter(|h| self.inflight(*h).load(Ordering::Relaxed) == 1)
            .map(|h| (self.counter_of(h).load(Ordering::Relaxed), h))
            .collect();
        open.sort_unstable();
        self.counter = open.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        open.into_iter().map(|(_, head)| head).collect()
    }

    /// A request is taken. `head` is below the ring's size.
    pub fn take(&mut self, head: u16) {
        self.counter_of(head).store(self.counter, Ordering::Relaxed);
        self.counter = self.counter.wrapping_add(1);
        self.inflight(head).store(1, Ordering::Release);
    }

    /// An answer is about to become visible.
    pub fn chain(&mut self, head: u16) {
        let last = self.last_batch_head().load(Ordering::Relaxed);
        self.next(head).store(last, Ordering::Relaxed);
        fence(Ordering::Release);
        self.last_batch_head().store(head, Ordering::Relaxed);
    }

    /// The answers of `batch` are visible and the ring's used index is `used`.
    pub fn settle(&mut self, batch: &[u16], used: u16) {
        fence(Ordering::Release);
        for head in batch {
            self.inflight(*head).store(0, Ordering::Relaxed);
        }
        fence(Ordering::Release);
        self.used_idx().store(used, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u16 = 8;

    fn area() -> InflightArea {
        InflightArea::new(MmapRegion::new(area_len(2) as usize).unwrap(), 2).unwrap()
    }

    fn start(area: &InflightArea, used: u16) -> (QueueInflight, Vec<u16>) {
        let mut queue = area.queue(1, SIZE).unwrap();
        let open = queue.recover(used);
        (queue, open)
    }

    #[test]
    fn what_was_not_answered_comes_back_in_order() {
        let area = area();
        let (mut q, open) = start(&area, 0);
        assert!(open.is_empty());
        for head in [5, 2, 7] {
            q.take(head);
        }
        q.chain(2);
        q.settle(&[2], 1);
        let (mut q, open) = start(&area, 1);
        assert_eq!(open, [5, 7]);
        q.take(0);
        assert_eq!(start(&area, 1).1, [5, 7, 0], "a newer request comes after the older ones");
    }

    #[test]
    fn answers_seen_by_the_guest_are_not_done_again() {
        let area = area();
        let (mut q, _) = start(&area, 40);
        for head in [1, 2, 3] {
            q.take(head);
        }
        // Died between the raised index (40 -> 42) and the cleared marks.
        q.chain(3);
        q.chain(1);
        assert_eq!(start(&area, 42).1, [2]);
    }

    #[test]
    fn answers_not_seen_by_the_guest_are_done_again() {
        let area = area();
        let (mut q, _) = start(&area, 40);
        q.take(4);
        // Died before the index was raised.
        q.chain(4);
        assert_eq!(start(&area, 40).1, [4]);
    }

    #[test]
    fn a_front_end_that_lies_gets_no_panic() {
        let area = area();
        let (mut q, _) = start(&area, 0);
        q.take(1);
        q.last_batch_head().store(60000, Ordering::Relaxed);
        assert_eq!(start(&area, 3).1, [1]);
        let (q, _) = start(&area, 3);
        q.last_batch_head().store(1, Ordering::Relaxed);
        q.next(1).store(1, Ordering::Relaxed);
        assert!(start(&area, 30000).1.is_empty());
    }

    #[test]
    fn a_queue_outside_of_the_area_has_no_record() {
        assert!(area().queue(2, SIZE).is_none());
        assert!(area().queue(1, MAX_RING).is_some());
        assert!(area().queue(0, 2 * MAX_RING).is_none());
        assert!(InflightArea::new(MmapRegion::new(32).unwrap(), 2).is_none());
        assert!(InflightArea::new(MmapRegion::new(4096).unwrap(), 0).is_none());
    }
}

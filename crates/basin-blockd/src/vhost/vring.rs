//! A split virtqueue, seen from the device.
//!
//! The addresses are checked once, when the ring is set; the mapping lives as
//! long as the ring. Guest and device race by design, so indexes are atomics and
//! a descriptor is copied out once and never looked at again. The used index is
//! raised for a batch of answers at once, apart from writing them, because the
//! in-flight record must be chained in between (see [`super::inflight`]).
//!
//! With `EVENT_IDX` each side writes the index at which it wants to be told:
//! the device into `avail_event` (behind the used ring), the driver into
//! `used_event` (behind the available ring). A side that is looking anyway leaves
//! its index behind and is not disturbed. Without it, flags say yes or no.

use std::cell::RefCell;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

use super::arriving::Missing;
use super::log::DirtyLog;
use super::memory::GuestMemory;
use crate::request::chain::Descriptor;

/// A ring as the front end described it.
#[derive(Clone)]
pub struct RingSetup {
    pub memory: Arc<GuestMemory>,
    pub size: u16,
    /// Addresses of the front end.
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    pub event_idx: bool,
    /// Where to note written pages, while a migration runs.
    pub log: Option<Arc<DirtyLog>>,
    /// The used ring's guest address, if writes to it are to be noted.
    pub used_log: Option<u64>,
}

impl RingSetup {
    /// The parts of the ring, and their alignment.
    fn parts(&self) -> [(u64, u64, usize); 3] {
        let n = u64::from(self.size);
        [(self.descriptors, 16 * n, 16), (self.available, 6 + 2 * n, 2), (self.used, 6 + 8 * n, 4)]
    }

    /// What of the ring has not arrived: it cannot be used before.
    pub fn missing(&self) -> Vec<Missing> {
        let mut missing = Vec::new();
        for (uva, len, _) in self.parts() {
            self.memory.missing_of_front_end(uva, len, &mut missing);
        }
        missing
    }
}

/// The guest broke the ring's rules; it is not served any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("the available index jumped from {from} to {to} in a ring of {size}")]
    Index { from: u16, to: u16, size: u16 },
    #[error("descriptor {head} is outside of a ring of {size}")]
    Head { head: u16, size: u16 },
}

/// Guest memory as the requests of one worker hold it: counted without atomics.
pub struct Pinned(Arc<GuestMemory>);

impl Pinned {
    /// For another thread.
    pub fn share(&self) -> Arc<GuestMemory> {
        Arc::clone(&self.0)
    }
}

impl Deref for Pinned {
    type Target = GuestMemory;
    fn deref(&self) -> &GuestMemory {
        &self.0
    }
}

pub struct Vring {
    memory: Rc<Pinned>,
    size: u16,
    descriptors: *const u8,
    available: *const u8,
    used: *mut u8,
    next_avail: u16,
    next_used: u16,
    /// Of the last look at whether the driver wants a notice.
    told: u16,
    event_idx: bool,
    log: Option<Arc<DirtyLog>>,
    used_log: Option<u64>,
    /// What was to be read and has not arrived.
    missing: RefCell<Vec<Missing>>,
}

/// Larger rings only make larger bursts.
pub const MAX_RING: u16 = 1024;

const AVAIL_RING: usize = 4;
const USED_RING: usize = 4;
const NO_NOTICE: u16 = 1;

impl Vring {
    /// `None`: an address is not the guest's or is not aligned.
    pub fn new(setup: &RingSetup, next_avail: u16) -> Option<Vring> {
        let size = setup.size;
        if size == 0 || !size.is_power_of_two() {
            return None;
        }
        let [descriptors, available, used] = setup.parts();
        let locate = |(uva, len, align): (u64, u64, usize)| {
            let p = setup.memory.pointer_of_front_end(uva, len)?;
            p.addr().is_multiple_of(align).then_some(p)
        };
        let mut ring = Vring {
            memory: Rc::new(Pinned(Arc::clone(&setup.memory))),
            size,
            descriptors: locate(descriptors)?,
            available: locate(available)?,
            used: locate(used)?,
            next_avail,
            next_used: 0,
            told: 0,
            event_idx: setup.event_idx,
            log: setup.log.clone(),
            used_log: setup.used_log,
            missing: RefCell::default(),
        };
        ring.next_used = ring.used_u16(2).load(Ordering::Acquire);
        ring.told = ring.next_used;
        Some(ring)
    }

    /// The same ring after the memory, the log or an address changed.
    #[must_use]
    pub fn moved(&self, setup: &RingSetup) -> Option<Vring> {
        let mut ring = Vring::new(setup, self.next_avail)?;
        ring.next_used = self.next_used;
        ring.told = self.told;
        Some(ring)
    }

    pub fn memory(&self) -> &Rc<Pinned> {
        &self.memory
    }
    pub fn log(&self) -> Option<&Arc<DirtyLog>> {
        self.log.as_ref()
    }
    pub fn size(&self) -> u16 {
        self.size
    }
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }
    pub fn set_next_avail(&mut self, next: u16) {
        self.next_avail = next;
    }
    pub fn next_used(&self) -> u16 {
        self.next_used
    }

    fn avail_u16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: `offset` is even and below 6 + 2 * size, which `new` checked to be
        // mapped and aligned; the mapping lives as long as `memory`.
        unsafe { AtomicU16::from_ptr(self.available.wrapping_add(offset).cast_mut().cast()) }
    }
    fn used_u16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: as above, with 6 + 8 * size.
        unsafe { AtomicU16::from_ptr(self.used.wrapping_add(offset).cast()) }
    }
    fn used_u32(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: as above, and `offset` is a multiple of 4 in a 4-aligned ring.
        unsafe { AtomicU32::from_ptr(self.used.wrapping_add(offset).cast()) }
    }
    fn note(&self, offset: usize, len: u64) {
        if let (Some(log), Some(base)) = (&self.log, self.used_log) {
            log.mark(base.wrapping_add(offset as u64), len);
        }
    }

    /// Are there requests that were not taken yet? (A cheap look, for polling.)
    pub fn has_more(&self) -> bool {
        self.avail_u16(2).load(Ordering::Acquire) != self.next_avail
    }

    /// The next request's head, which stays where it is until [`Vring::pop`].
    pub fn peek(&self) -> Result<Option<u16>, Broken> {
        let (from, to, size) =
            (self.next_avail, self.avail_u16(2).load(Ordering::Acquire), self.size);
        if from == to {
            return Ok(None);
        }
        if to.wrapping_sub(from) > size {
            return Err(Broken::Index { from, to, size });
        }
        let slot = usize::from(from & (size - 1));
        let head = self.avail_u16(AVAIL_RING + 2 * slot).load(Ordering::Relaxed);
        if head >= size {
            return Err(Broken::Head { head, size });
        }
        Ok(Some(head))
    }

    /// Takes what [`Vring::peek`] showed.
    pub fn pop(&mut self) {
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Copies guest memory out; false if it is not the guest's, or has not arrived.
    pub fn read(&self, gpa: u64, buf: &mut [u8]) -> bool {
        let mut missing = self.missing.borrow_mut();
        self.memory.missing(gpa, buf.len() as u64, &mut missing);
        missing.is_empty() && self.memory.read(gpa, buf)
    }

    /// What [`Vring::read`] missed since the last call.
    pub fn take_missing(&self) -> Vec<Missing> {
        self.missing.take()
    }

    /// A copy of a descriptor of the ring's own table.
    pub fn descriptor(&self, index: u16) -> Option<Descriptor> {
        (index < self.size).then(|| {
            let at = self.descriptors.wrapping_add(16 * usize::from(index)).cast::<[u8; 16]>();
            // SAFETY: the table of 16 * size bytes was checked by `new`; the guest may
            // write meanwhile, hence volatile, and any bytes are a valid array.
            let bytes = unsafe { at.read_volatile() };
            Descriptor::from_bytes(&bytes)
        })
    }

    /// Writes an answer that [`Vring::publish`] will make visible.
    pub fn push(&mut self, head: u16, written: u32) {
        let at = USED_RING + 8 * usize::from(self.next_used & (self.size - 1));
        self.used_u32(at).store(u32::from(head), Ordering::Relaxed);
        self.used_u32(at + 4).store(written, Ordering::Relaxed);
        self.note(at, 8);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Shows all answers to the driver.
    pub fn publish(&mut self) {
        self.used_u16(2).store(self.next_used, Ordering::Release);
        self.note(2, 2);
    }

    /// Does the driver want a notice of what was published since the last call?
    pub fn wants_notice(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let (old, new) = (self.told, self.next_used);
        self.told = new;
        if self.event_idx {
            let at = AVAIL_RING + 2 * usize::from(self.size);
            let event = self.avail_u16(at).load(Ordering::Relaxed);
            passed(event, new, old)
        } else {
            self.avail_u16(0).load(Ordering::Relaxed) & NO_NOTICE == 0
        }
    }

    /// Asks the driver not to kick.
    pub fn suppress_kicks(&self) {
        if !self.event_idx {
            self.used_u16(0).store(NO_NOTICE, Ordering::Relaxed);
            self.note(0, 2);
        }
    }

    /// Asks for a kick with the next request; true if one came in meanwhile.
    pub fn request_kick(&self) -> bool {
        if self.event_idx {
            let at = USED_RING + 8 * usize::from(self.size);
            self.used_u16(at).store(self.next_avail, Ordering::Relaxed);
            self.note(at, 2);
        } else {
            self.used_u16(0).store(0, Ordering::Relaxed);
            self.note(0, 2);
        }
        fence(Ordering::SeqCst);
        self.has_more()
    }
}

/// Did the index pass `event` on its way from `old` to `new`?
fn passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::passed;

    #[test]
    fn a_notice_is_due_when_the_event_index_is_passed() {
        for (event, new, old, expect) in [
            (0, 1, 0, true),
            (1, 1, 0, false),
            (5, 10, 3, true),
            (10, 10, 3, false),
            (2, 10, 3, false),
            (65535, 2, 65534, true),
            (2, 2, 65534, false),
            (7, 7, 7, false),
        ] {
            assert_eq!(passed(event, new, old), expect, "{event} {new} {old}");
        }
    }
}

//! Which pages of the guest were written, for a live migration.
//!
//! QEMU refuses to migrate a guest whose block back end cannot tell (it blocks
//! migration without `VHOST_F_LOG_ALL`), because it sees only what the vCPUs wrote.

use std::sync::atomic::{AtomicU8, Ordering};

use vm_memory::{MmapRegion, VolatileMemory};

const PAGE_SHIFT: u32 = 12;

/// A bitmap shared with the front end: one bit for each 4 KiB page.
pub struct DirtyLog {
    map: MmapRegion<()>,
}

impl DirtyLog {
    pub fn new(map: MmapRegion<()>) -> DirtyLog {
        DirtyLog { map }
    }

    /// Notes that `len` bytes at `gpa` changed. Called after the change: a page
    /// noted before it could be copied before it and never again. What lies past
    /// the log's end belongs to no page that the front end asked about.
    pub fn mark(&self, gpa: u64, len: u64) {
        let Some(last) = len.checked_sub(1).and_then(|n| gpa.checked_add(n)) else { return };
        for page in (gpa >> PAGE_SHIFT)..=(last >> PAGE_SHIFT) {
            let (byte, bit) = ((page / 8) as usize, 1u8 << (page % 8));
            let Ok(cell) = self.map.get_atomic_ref::<AtomicU8>(byte) else { return };
            // Always, even if it is set: the read-modify-write is a full barrier. A
            // plain look could pass the change on its way to memory, and the front
            // end would copy the page without it and clear the bit.
            cell.fetch_or(bit, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(gpa: u64, len: u64, expect: &[u64]) {
        let log = DirtyLog::new(MmapRegion::new(4096).unwrap());
        log.mark(gpa, len);
        let set = |page: &u64| {
            let cell = log.map.get_atomic_ref::<AtomicU8>((page / 8) as usize).unwrap();
            cell.load(Ordering::Relaxed) & (1 << (page % 8)) != 0
        };
        assert_eq!((0..4096 * 8).filter(set).collect::<Vec<_>>(), expect, "{gpa:#x}+{len:#x}");
    }

    #[test]
    fn every_touched_page_is_marked() {
        check(0, 1, &[0]);
        check(0xfff, 2, &[0, 1]);
        check(0x8000, 0x2000, &[8, 9]);
        check(0x8000, 0, &[]);
    }

    #[test]
    fn nothing_is_marked_past_the_end() {
        check(4096 * 8 * 4096, 4096, &[]);
        check(u64::MAX, 4096, &[]);
        check(u64::MAX - 4096, 4096, &[]);
    }
}

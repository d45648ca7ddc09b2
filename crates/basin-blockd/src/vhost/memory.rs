//! The guest's memory as the front end hands it over, and the one place where a
//! guest's address becomes a pointer of this process.
//!
//! A front end is as hostile as the guest behind it. Two things follow. Every
//! address is checked against the regions at each use. And a region's file must
//! not be able to shrink under the mapping, because touching a lost page kills
//! the process and with it every other disk: only a front end of root may hand
//! over memory without `F_SEAL_SHRINK`.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use super::arriving::{Arriving, Missing, Watched};

/// A piece of guest memory.
pub struct Region {
    gpa: u64,
    /// Where the front end has it mapped: ring addresses are given so.
    uva: u64,
    len: u64,
    map: MmapRegion<()>,
    /// The same once more, while it arrives.
    watched: Option<Arc<Watched>>,
}

impl Region {
    fn pointer(&self, offset: u64) -> *mut u8 {
        self.map.as_ptr().wrapping_add(offset as usize)
    }
}

/// What the front end says of a region.
#[derive(Debug, Clone, Copy)]
pub struct RegionSpec {
    pub gpa: u64,
    pub uva: u64,
    pub len: u64,
    pub offset: u64,
}

/// Maps `len` bytes of a shared file, having made sure that they are there and,
/// unless the peer is trusted, that they stay there.
pub fn map_shared(file: File, offset: u64, len: u64, trusted: bool) -> io::Result<MmapRegion<()>> {
    let refuse = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, why.to_owned());
    let end = offset.checked_add(len).ok_or_else(|| refuse("the region wraps around"))?;
    if end > file.metadata()?.len() {
        return Err(refuse("the region reaches past the end of its file"));
    }
    if !trusted {
        // Sealing fails where it is sealed already or cannot be; only the outcome counts.
        let _ = fcntl(file.as_fd(), FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK));
        let seals = fcntl(file.as_fd(), FcntlArg::F_GET_SEALS)
            .map(SealFlag::from_bits_truncate)
            .unwrap_or(SealFlag::empty());
        if !seals.contains(SealFlag::F_SEAL_SHRINK) {
            return Err(refuse(
                "the memory's file can shrink: use a memfd (memory-backend-memfd,share=on)",
            ));
        }
    }
    let len = usize::try_from(len).map_err(|_| refuse("the region is too large"))?;
    let map = MmapRegion::from_file(FileOffset::new(file, offset), len)
        .map_err(|e| refuse(&format!("cannot map: {e}")))?;
    // Guest memory has no place in a core dump of this daemon.
    // SAFETY: the range is the mapping just made; the advice changes no contents.
    unsafe { libc::madvise(map.as_ptr().cast(), len, libc::MADV_DONTDUMP) };
    Ok(map)
}

/// All regions of a guest; immutable, replaced as a whole.
#[derive(Default, Clone)]
pub struct GuestMemory {
    /// By guest address, not overlapping.
    regions: Vec<Arc<Region>>,
    /// It has holes: see [`GuestMemory::missing`].
    arriving: Option<Arc<Arriving>>,
}

impl GuestMemory {
    /// More regions than this make a lookup slow; QEMU needs a handful.
    pub const MAX_REGIONS: usize = 256;

    /// No memory yet; what comes, arrives page by page.
    pub fn that_arrives(arriving: Arc<Arriving>) -> GuestMemory {
        GuestMemory { regions: Vec::new(), arriving: Some(arriving) }
    }

    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// Where the front end is told of what is missed in the region that begins here.
    pub fn base(&self, gpa: u64) -> Option<u64> {
        let (region, offset) = self.find(gpa)?;
        let watched = region.watched.as_ref().filter(|_| offset == 0)?;
        Some(watched.start().addr() as u64)
    }

    /// Whoever has what is missing fetched; `None`: nothing is missing.
    pub fn arriving(&self) -> Option<&Arc<Arriving>> {
        self.arriving.as_ref()
    }

    /// Appends what of these bytes has not arrived. It may not be touched: it would become
    /// zeros, for the guest too.
    pub fn missing(&self, mut gpa: u64, mut len: u64, out: &mut Vec<Missing>) {
        let Some(arriving) = &self.arriving else { return };
        while let Some((region, offset)) = self.find(gpa).filter(|_| len > 0) {
            let n = len.min(region.len - offset);
            if let Some(watched) = &region.watched {
                arriving.missing(watched, offset, n, out);
            }
            let Some(next) = gpa.checked_add(n) else { return };
            (gpa, len) = (next, len - n);
        }
    }

    /// The same for an address of the front end, within one region.
    pub fn missing_of_front_end(&self, uva: u64, len: u64, out: &mut Vec<Missing>) {
        if let Some(region) = self.regions.iter().find(|r| r.uva <= uva && uva - r.uva < r.len) {
            self.missing(region.gpa + (uva - region.uva), len, out);
        }
    }

    /// The same memory and one more region.
    pub fn with(&self, spec: RegionSpec, file: File, trusted: bool) -> io::Result<GuestMemory> {
        let refuse = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, why.to_owned());
        let overflow =
            spec.gpa.checked_add(spec.len).is_none() || spec.uva.checked_add(spec.len).is_none();
        if spec.len == 0 || overflow {
            return Err(refuse("the region is empty or wraps around"));
        }
        if self.regions.len() >= Self::MAX_REGIONS {
            return Err(refuse("too many memory regions"));
        }
        let clash = |r: &Arc<Region>| r.gpa < spec.gpa + spec.len && spec.gpa < r.gpa + r.len;
        if self.regions.iter().any(clash) {
            return Err(refuse("memory regions overlap"));
        }
        let watched = match &self.arriving {
            Some(arriving) => {
                arriving.watch(map_shared(file.try_clone()?, spec.offset, spec.len, trusted)?)?
            }
            None => None,
        };
        let map = map_shared(file, spec.offset, spec.len, trusted)?;
        let region = Region { gpa: spec.gpa, uva: spec.uva, len: spec.len, map, watched };
        let mut regions = self.regions.clone();
        let at = regions.partition_point(|r| r.gpa < spec.gpa);
        regions.insert(at, Arc::new(region));
        Ok(GuestMemory { regions, arriving: self.arriving.clone() })
    }

    /// The same memory without one region; `None` if there is no such region.
    pub fn without(&self, gpa: u64, uva: u64, len: u64) -> Option<GuestMemory> {
        let mut regions = self.regions.clone();
        let at = regions.iter().position(|r| r.gpa == gpa && r.uva == uva && r.len == len)?;
        regions.remove(at);
        Some(GuestMemory { regions, arriving: self.arriving.clone() })
    }

    fn find(&self, gpa: u64) -> Option<(&Region, u64)> {
        let at = self.regions.partition_point(|r| r.gpa <= gpa);
        let region = self.regions.get(at.checked_sub(1)?)?;
        let offset = gpa - region.gpa;
        (offset < region.len).then_some((region, offset))
    }

    /// A pointer to `len` bytes within one region.
    pub fn pointer(&self, gpa: u64, len: u64) -> Option<*mut u8> {
        let (region, offset) = self.find(gpa)?;
        (len <= region.len - offset).then(|| region.pointer(offset))
    }

    /// The same for an address of the front end.
    pub fn pointer_of_front_end(&self, uva: u64, len: u64) -> Option<*mut u8> {
        let region = self.regions.iter().find(|r| r.uva <= uva && uva - r.uva < r.len)?;
        let offset = uva - region.uva;
        (len <= region.len - offset).then(|| region.pointer(offset))
    }

    /// Appends the pieces that `len` bytes at `gpa` consist of; they may cross regions.
    pub fn translate(&self, gpa: u64, len: u64, out: &mut Vec<libc::iovec>) -> Option<()> {
        let (mut gpa, mut left) = (gpa, len);
        while left > 0 {
            let (region, offset) = self.find(gpa)?;
            let n = left.min(region.len - offset);
            out.push(libc::iovec { iov_base: region.pointer(offset).cast(), iov_len: n as usize });
            gpa = gpa.checked_add(n)?;
            left -= n;
        }
        Some(())
    }

    /// Copies guest memory out; false if any of it is not the guest's.
    pub fn read(&self, gpa: u64, buf: &mut [u8]) -> bool {
        let (mut gpa, mut done) = (gpa, 0);
        while done < buf.len() {
            let Some((region, offset)) = self.find(gpa) else { return false };
            let n = (buf.len() - done).min((region.len - offset) as usize);
            let Ok(slice) = region.map.get_slice(offset as usize, n) else { return false };
            slice.copy_to(&mut buf[done..done + n]);
            done += n;
            gpa += n as u64;
        }
        true
    }

    /// The guest's address of a pointer that this memory gave out.
    pub fn address_of(&self, pointer: *const u8) -> Option<u64> {
        let p = pointer.addr();
        let inside = |r: &&Arc<Region>| {
            let base = r.map.as_ptr().addr();
            base <= p && p - base < r.len as usize
        };
        let region = self.regions.iter().find(inside)?;
        Some(region.gpa + (p - region.map.as_ptr().addr()) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};

    fn memfd(len: u64, flags: MFdFlags) -> File {
        let file = File::from(memfd_create("test", flags).unwrap());
        file.set_len(len).unwrap();
        file
    }

    fn two_regions() -> GuestMemory {
        let first = RegionSpec { gpa: 0, uva: 0x7000_0000, len: 0x2000, offset: 0 };
        let second = RegionSpec { gpa: 0x2000, uva: 0x9000_0000, len: 0x1000, offset: 0 };
        GuestMemory::default()
            .with(second, memfd(0x1000, MFdFlags::MFD_ALLOW_SEALING), false)
            .unwrap()
            .with(first, memfd(0x2000, MFdFlags::MFD_ALLOW_SEALING), false)
            .unwrap()
    }

    #[test]
    fn what_crosses_regions_comes_in_pieces() {
        let mut out = Vec::new();
        two_regions().translate(0x1f00, 0x200, &mut out).unwrap();
        assert_eq!(out.iter().map(|v| v.iov_len).collect::<Vec<_>>(), [0x100, 0x100]);
    }

    #[test]
    fn nothing_outside_the_regions_is_reached() {
        let mem = two_regions();
        for (gpa, len) in
            [(0x2f00, 0x101), (0x3000, 1), (u64::MAX, 1), (u64::MAX - 8, 64), (0, u64::MAX)]
        {
            assert!(mem.translate(gpa, len, &mut Vec::new()).is_none(), "{gpa:#x}+{len:#x}");
        }
        assert!(mem.pointer(0x1fff, 2).is_none(), "a pointer never crosses a region");
        assert!(mem.pointer_of_front_end(0x7000_1fff, 2).is_none());
        assert!(!mem.read(0x2fff, &mut [0; 2]));
    }

    #[test]
    fn addresses_round_trip() {
        let mem = two_regions();
        for gpa in [0, 0x1fff, 0x2000, 0x2fff] {
            assert_eq!(mem.address_of(mem.pointer(gpa, 1).unwrap()), Some(gpa));
        }
    }

    #[test]
    fn memory_that_can_vanish_is_refused_from_strangers() {
        let spec = RegionSpec { gpa: 0, uva: 0, len: 0x1000, offset: 0 };
        let unsealable = || memfd(0x1000, MFdFlags::empty());
        assert!(GuestMemory::default().with(spec, unsealable(), false).is_err());
        assert!(GuestMemory::default().with(spec, unsealable(), true).is_ok());
        let long = RegionSpec { len: 0x2000, ..spec };
        assert!(GuestMemory::default().with(long, unsealable(), true).is_err());
    }

    #[test]
    fn regions_may_not_overlap() {
        let spec = RegionSpec { gpa: 0x1fff, uva: 0, len: 0x1000, offset: 0 };
        assert!(two_regions().with(spec, memfd(0x1000, MFdFlags::empty()), true).is_err());
    }
}

//! A virtio-blk driver over vhost-user, without a guest: memory in a memfd, split
//! rings, event index. The memory outlives a connection, as a guest's does.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::vhost_user::message::{
    FrontendReq, VhostUserConfigFlags, VhostUserInflight, VhostUserProtocolFeatures as P,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::until;

pub const RING: u16 = 64;
/// Requests at a time; each has three descriptors.
pub const SLOTS: u16 = 16;
pub const DATA: u64 = 64 << 10;
/// The guest's memory begins here, to tell its addresses from offsets.
pub const GPA: u64 = 1 << 30;

const QUEUE: u64 = 2 << 20;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const HEADERS: u64 = 0x3000;
const BUFFERS: u64 = 0x10000;

pub const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28 | 1 << 14 | 1 << 13 | 1 << 9;
pub const LOG_ALL: u64 = 1 << 26;
pub const EVENT_IDX: u64 = 1 << 29;
pub const FLUSH: u64 = 1 << 9;

pub const READ: u32 = 0;
pub const WRITE: u32 = 1;
pub const FLUSH_CMD: u32 = 4;
pub const GET_ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;

/// What a guest keeps while its back end comes and goes.
pub struct Guest {
    pub map: MmapRegion<()>,
    file: File,
    queues: Vec<Queue>,
    inflight: Option<(VhostUserInflight, File)>,
}

#[derive(Default)]
struct Queue {
    avail: u16,
    used: u16,
    /// Requests by slot, until answered.
    open: Vec<Option<u32>>,
    /// Answers that came more than once or for nothing.
    strays: u32,
}

/// An answered request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub slot: u16,
    pub status: u8,
    pub written: u32,
}

impl Guest {
    pub fn new(queues: usize) -> Guest {
        let flags = MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create("guest", flags).unwrap());
        let len = QUEUE * queues as u64;
        file.set_len(len).unwrap();
        let share = FileOffset::new(file.try_clone().unwrap(), 0);
        let map = MmapRegion::from_file(share, len as usize).unwrap();
        let queue = || Queue { open: vec![None; SLOTS.into()], ..Queue::default() };
        Guest { map, file, queues: (0..queues).map(|_| queue()).collect(), inflight: None }
    }

    /// Connects, or connects again.
    pub fn connect(&mut self, socket: &Path) -> Link {
        self.connect_with(socket, FEATURES)
    }

    /// Connects to another back end, with rings that stand where the last one stopped:
    /// as after a migration, nothing of the last one's record comes along.
    pub fn connect_at(&mut self, socket: &Path, bases: &[u16]) -> Link {
        self.inflight = None;
        self.link(socket, FEATURES, Some(bases))
    }

    pub fn connect_with(&mut self, socket: &Path, features: u64) -> Link {
        self.link(socket, features, None)
    }

    fn link(&mut self, socket: &Path, features: u64, bases: Option<&[u16]>) -> Link {
        until("the socket", || socket.exists().then_some(()));
        let mut front = Frontend::connect(socket, 64).unwrap();
        front.set_owner().unwrap();
        let offered = front.get_features().unwrap();
        let wanted =
            P::CONFIG | P::MQ | P::INFLIGHT_SHMFD | P::REPLY_ACK | P::BACKEND_REQ | P::LOG_SHMFD;
        let protocol = front.get_protocol_features().unwrap() & wanted;
        assert_eq!(protocol, wanted);
        front.set_protocol_features(protocol).unwrap();
        front.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
        if self.inflight.is_none() {
            let ask = VhostUserInflight::new(0, 0, self.queues.len() as u16, RING);
            self.inflight = Some(front.get_inflight_fd(&ask).unwrap());
        }
        let (area, file) = self.inflight.as_ref().unwrap();
        front.set_inflight_fd(area, file.as_raw_fd()).unwrap();
        front.set_features(offered & features).unwrap();
        front.set_mem_table(&[self.region()]).unwrap();
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let events = || (0..self.queues.len()).map(|_| event()).collect();
        let link = Link { front, kicks: events(), calls: events(), faults: None };
        // All that a front end knows after its back end died.
        let used: Vec<u16> = (0..self.queues.len()).map(|q| self.used(q)).collect();
        link.start(self, bases.unwrap_or(&used));
        link
    }

    /// Its memory is one hole from now on; what was there is given out.
    pub fn leave(&mut self) -> Vec<u8> {
        self.inflight = None;
        let (pages, len) = (self.bytes(0, self.map.size()), self.map.size() as i64);
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&self.file, mode, 0, len).unwrap();
        pages
    }

    pub fn memory(&self) -> File {
        self.file.try_clone().unwrap()
    }

    /// Where the three pages of a ring are.
    pub fn ring(q: usize) -> u64 {
        QUEUE * q as u64
    }

    /// Connects as the target of a post-copy does, whose device is not started yet; and
    /// where blockd has the memory.
    pub fn connect_arriving(&mut self, socket: &Path) -> (Link, u64) {
        until("the socket", || socket.exists().then_some(()));
        let mut front = Frontend::connect(socket, 64).unwrap();
        front.set_owner().unwrap();
        let offered = front.get_features().unwrap();
        let wanted = P::CONFIG | P::MQ | P::REPLY_ACK | P::BACKEND_REQ | P::PAGEFAULT;
        let protocol = front.get_protocol_features().unwrap() & wanted;
        assert_eq!(protocol, wanted);
        front.set_protocol_features(protocol).unwrap();
        front.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
        let faults = Some(front.postcopy_advise().unwrap());
        front.postcopy_listen().unwrap();
        front.set_features(offered & FEATURES).unwrap();
        let bases = front.set_mem_table(&[self.region()]).unwrap().unwrap();
        front.postcopy_ack_mem_regions(FrontendReq::SET_MEM_TABLE).unwrap();
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let events = || (0..self.queues.len()).map(|_| event()).collect();
        (Link { front, kicks: events(), calls: events(), faults }, bases[0])
    }

    /// Offers it to a blockd that may refuse it.
    pub fn offer_memory(&self, socket: &Path) -> vhost::Result<()> {
        let front = self.connect_anew(socket)?;
        front.set_mem_table(&[self.region()]).map(drop)
    }

    /// Tells the end of a post-copy to a blockd that knows of none.
    pub fn tell_end(&self, socket: &Path) {
        self.connect_anew(socket).unwrap().postcopy_end().unwrap();
    }

    fn connect_anew(&self, socket: &Path) -> vhost::Result<Frontend> {
        let mut front = Frontend::connect(socket, 64)?;
        front.set_owner()?;
        let offered = front.get_features()?;
        let wanted = P::CONFIG | P::MQ | P::REPLY_ACK | P::PAGEFAULT;
        let protocol = front.get_protocol_features()? & wanted;
        front.set_protocol_features(protocol)?;
        front.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
        front.set_features(offered & FEATURES)?;
        Ok(front)
    }

    fn used(&self, q: usize) -> u16 {
        self.u16_at(QUEUE * q as u64 + USED + 2).load(Ordering::Acquire)
    }

    pub fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: GPA,
            memory_size: self.map.size() as u64,
            userspace_addr: self.map.as_ptr() as u64,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    pub fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        self.map.get_slice(offset as usize, len).unwrap().copy_to(&mut buf);
        buf
    }

    pub fn put(&self, offset: u64, bytes: &[u8]) {
        self.map.get_slice(offset as usize, bytes.len()).unwrap().copy_from(bytes);
    }

    pub fn u16_at(&self, offset: u64) -> &AtomicU16 {
        self.map.get_atomic_ref(offset as usize).unwrap()
    }

    /// Offsets of a slot's header, data and status.
    pub fn places(q: usize, slot: u16) -> (u64, u64, u64) {
        let base = QUEUE * q as u64;
        let header = base + HEADERS + 512 * u64::from(slot);
        (header, base + BUFFERS + DATA * u64::from(slot), header + 256)
    }

    pub fn avail_index(q: usize) -> u64 {
        QUEUE * q as u64 + AVAIL + 2
    }

    pub fn put_descriptor(&self, q: usize, n: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let mut b = addr.to_le_bytes().to_vec();
        b.extend(len.to_le_bytes());
        b.extend(flags.to_le_bytes());
        b.extend(next.to_le_bytes());
        self.put(QUEUE * q as u64 + 16 * u64::from(n), &b);
    }

    /// Makes `head` available.
    pub fn offer(&mut self, q: usize, head: u16) {
        let queue = &mut self.queues[q];
        let at = QUEUE * q as u64 + AVAIL + 4 + 2 * u64::from(queue.avail % RING);
        queue.avail = queue.avail.wrapping_add(1);
        let next = queue.avail;
        self.u16_at(at).store(head, Ordering::Relaxed);
        self.u16_at(Guest::avail_index(q)).store(next, Ordering::Release);
    }

    pub fn free_slot(&self, q: usize) -> Option<u16> {
        self.queues[q].open.iter().position(Option::is_none).map(|s| s as u16)
    }

    pub fn open_requests(&self, q: usize) -> usize {
        self.queues[q].open.iter().flatten().count()
    }

    /// How many answers came for nothing.
    pub fn strays(&self) -> u32 {
        self.queues.iter().map(|q| q.strays).sum()
    }

    /// Writes a request into a free slot and offers it.
    pub fn send(&mut self, q: usize, kind: u32, sector: u64, data: Data<'_>) -> u16 {
        let slot = self.free_slot(q).expect("a free slot");
        let (header, buffer, status) = Guest::places(q, slot);
        let mut h = kind.to_le_bytes().to_vec();
        h.extend([0; 4]);
        h.extend(sector.to_le_bytes());
        self.put(header, &h);
        self.put(status, &[0xee]);
        let d = slot * 3;
        let (next, write) = (1, 2);
        let (len, flags) = match data {
            Data::None => (0, 0),
            Data::Out(bytes) => {
                self.put(buffer, bytes);
                (bytes.len() as u32, next)
            }
            Data::In(len) => (len, next | write),
        };
        self.put_descriptor(q, d, GPA + header, 16, next, if len > 0 { d + 1 } else { d + 2 });
        self.put_descriptor(q, d + 1, GPA + buffer, len, flags, d + 2);
        self.put_descriptor(q, d + 2, GPA + status, 1, write, 0);
        self.queues[q].open[usize::from(slot)] = Some(kind);
        self.offer(q, d);
        slot
    }

    /// Takes answers that have come.
    pub fn reap(&mut self, q: usize) -> Vec<Answer> {
        let base = QUEUE * q as u64 + USED;
        let now = self.u16_at(base + 2).load(Ordering::Acquire);
        let mut answers = Vec::new();
        while self.queues[q].used != now {
            let at = base + 4 + 8 * u64::from(self.queues[q].used % RING);
            let id: &AtomicU32 = self.map.get_atomic_ref(at as usize).unwrap();
            let len: &AtomicU32 = self.map.get_atomic_ref(at as usize + 4).unwrap();
            let (id, written) = (id.load(Ordering::Relaxed), len.load(Ordering::Relaxed));
            self.queues[q].used = self.queues[q].used.wrapping_add(1);
            let slot = (id / 3) as u16;
            let open = &mut self.queues[q];
            match open.open.get_mut(usize::from(slot)).and_then(Option::take) {
                Some(_) => {
                    let status = self.bytes(Guest::places(q, slot).2, 1)[0];
                    answers.push(Answer { slot, status, written });
                }
                None => open.strays += 1,
            }
        }
        answers
    }

    pub fn answers_waiting(&self, q: usize) -> u16 {
        let now = self.u16_at(QUEUE * q as u64 + USED + 2).load(Ordering::Acquire);
        now.wrapping_sub(self.queues[q].used)
    }
}

/// The data part of a request.
#[derive(Clone, Copy)]
pub enum Data<'a> {
    None,
    Out(&'a [u8]),
    In(u32),
}

/// A connection.
pub struct Link {
    pub front: Frontend,
    kicks: Vec<EventFd>,
    calls: Vec<EventFd>,
    /// What blockd misses of memory that arrives, is told there.
    pub faults: Option<File>,
}

impl Link {
    /// Starts the device with rings that stand at `bases`.
    pub fn start(&self, guest: &Guest, bases: &[u16]) {
        for (q, base) in bases.iter().enumerate() {
            self.front.set_vring_num(q, RING).unwrap();
            self.front.set_vring_base(q, *base).unwrap();
            self.set_addresses(guest, q, false);
            self.front.set_vring_kick(q, &self.kicks[q]).unwrap();
            self.front.set_vring_call(q, &self.calls[q]).unwrap();
            // Through another connection to the same, because it wants to be changed.
            self.front.clone().set_vring_enable(q, true).unwrap();
        }
    }

    /// Tells where the memory is once more; where blockd has it now.
    pub fn map_again(&self, guest: &Guest) -> u64 {
        let bases = self.front.set_mem_table(&[guest.region()]).unwrap().unwrap();
        self.front.clone().postcopy_ack_mem_regions(FrontendReq::SET_MEM_TABLE).unwrap();
        bases[0]
    }

    /// The same for a guest whose memory arrives, with rings that were never used.
    pub fn begin(&self, guest: &Guest) {
        self.start(guest, &vec![0; guest.queues.len()]);
    }

    /// Stops the device; where its rings stand.
    pub fn stop(&self, queues: usize) -> Vec<u16> {
        (0..queues).map(|q| self.front.get_vring_base(q).unwrap() as u16).collect()
    }

    pub fn set_addresses(&self, guest: &Guest, q: usize, log: bool) {
        let base = guest.map.as_ptr() as u64 + QUEUE * q as u64;
        let config = VringConfigData {
            queue_max_size: RING,
            queue_size: RING,
            flags: u32::from(log),
            desc_table_addr: base,
            used_ring_addr: base + USED,
            avail_ring_addr: base + AVAIL,
            log_addr: log.then_some(GPA + QUEUE * q as u64 + USED),
        };
        self.front.set_vring_addr(q, &config).unwrap();
    }

    /// Kicks, always: the device may not miss one, and may ignore it.
    pub fn kick(&self, q: usize) {
        fence(Ordering::SeqCst);
        // A dead back end leaves the counter to grow.
        let _ = self.kicks[q].write(1);
    }

    /// Was the driver told?
    pub fn called(&self, q: usize) -> bool {
        self.calls[q].read().is_ok()
    }

    /// One request from start to end.
    pub fn run(
        &self,
        guest: &mut Guest,
        q: usize,
        kind: u32,
        sector: u64,
        data: Data<'_>,
    ) -> Answer {
        let slot = guest.send(q, kind, sector, data);
        self.kick(q);
        let mut answers = until("an answer", || {
            let a = guest.reap(q);
            (!a.is_empty()).then_some(a)
        });
        assert_eq!(answers.len(), 1);
        let answer = answers.remove(0);
        assert_eq!(answer.slot, slot);
        answer
    }

    pub fn write(&self, guest: &mut Guest, sector: u64, bytes: &[u8]) -> u8 {
        self.run(guest, 0, WRITE, sector, Data::Out(bytes)).status
    }

    pub fn read(&self, guest: &mut Guest, sector: u64, len: usize) -> Result<Vec<u8>, u8> {
        let answer = self.run(guest, 0, READ, sector, Data::In(len as u32));
        if answer.status != 0 {
            return Err(answer.status);
        }
        assert_eq!(answer.written, len as u32 + 1);
        Ok(guest.bytes(Guest::places(0, answer.slot).1, len))
    }

    pub fn flush(&self, guest: &mut Guest) -> u8 {
        self.run(guest, 0, FLUSH_CMD, 0, Data::None).status
    }

    /// Discard or write-zeroes of one range.
    pub fn clear(&self, guest: &mut Guest, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        let mut b = sector.to_le_bytes().to_vec();
        b.extend(sectors.to_le_bytes());
        b.extend(flags.to_le_bytes());
        self.run(guest, 0, kind, 0, Data::Out(&b)).status
    }

    pub fn capacity(&mut self) -> u64 {
        let flags = VhostUserConfigFlags::empty();
        let (_, bytes) = self.front.get_config(0, 60, flags, &[0; 60]).unwrap();
        u64::from_le_bytes(bytes[..8].try_into().unwrap()) * 512
    }
}

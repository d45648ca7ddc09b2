//! One request: from the head in the ring to the answer.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::engine::Engine;
use super::inbox::{Message, QueueKey};
use super::queue::{Bounce, Slot};
use super::ring::{Tag, Target};
use crate::io::Reach;
use crate::io::lane::{GuestBuffers, Job, copy_from, copy_to};
use crate::request::{ID_LEN, Limits, Op, Parser, Refusal, Request, Status};
use crate::vhost::arriving::Missing;
use crate::vhost::vring::Vring;

/// Zeros for devices that cannot zero by themselves.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

impl Engine {
    /// Takes the next request; false if there is none.
    pub(super) fn take_one(&mut self, n: u32) -> bool {
        let Some(queue) = self.queues[n as usize].as_mut() else { return false };
        if queue.open >= u32::from(queue.ring.size()) && queue.has_requests() {
            // Each request holds a descriptor until it is answered.
            self.break_queue(n, &"more requests than descriptors");
            return false;
        }
        let head = match queue.redo.front().copied().map(Some).map_or_else(|| queue.ring.peek(), Ok)
        {
            Ok(None) => return false,
            Ok(Some(head)) => head,
            Err(why) => {
                self.break_queue(n, &why);
                return false;
            }
        };
        let limits = Limits { capacity: queue.block.size(), read_only: queue.disk.read_only };
        let parsed = self.parser.parse(&queue.ring, head, limits);
        let missing = missing(&queue.ring, &self.parser, &parsed);
        if !missing.is_empty() {
            self.fetch(n, missing);
            return false;
        }
        if queue.redo.pop_front().is_none() {
            queue.ring.pop();
            if let Some(inflight) = &mut queue.inflight {
                inflight.take(head);
            }
        }
        match parsed {
            Ok(request) => self.begin(n, head, request),
            Err(Refusal::Answer { status, at, why }) => {
                let Some(p) = queue.ring.memory().pointer(at, 1) else {
                    self.break_queue(n, &"a status byte outside of the guest's memory");
                    return false;
                };
                queue.disk.failed("refused", &why);
                let memory = Rc::clone(queue.ring.memory());
                let slot = self.slot(n, head);
                let s = &mut self.slots[slot as usize];
                (s.status, s.memory) = (p, Some(memory));
                self.answer(slot, status, 1);
                true
            }
            Err(Refusal::Fatal(why)) => {
                self.break_queue(n, &why);
                false
            }
            Err(Refusal::NoStatus) => {
                self.break_queue(n, &"a request without a status byte");
                false
            }
        }
    }

    /// Has the memory of the next request fetched, which is not taken before: the worker
    /// never waits, and a queue that is stopped meanwhile leaves it to whoever is next.
    fn fetch(&mut self, n: u32, missing: Vec<Missing>) {
        let inbox = Arc::clone(&self.inbox);
        let Some(queue) = self.queue(n) else { return };
        let Some(arriving) = queue.ring.memory().arriving() else { return };
        let life = queue.life;
        let then = move || inbox.send(Message::Arrived(QueueKey(n), life));
        arriving.fetch(missing, Box::new(then));
        queue.fetching = true;
    }

    /// A free slot, counted as open in its queue.
    fn slot(&mut self, n: u32, head: u16) -> u32 {
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.slots.push(Slot::new());
            (self.slots.len() - 1) as u32
        });
        let s = &mut self.slots[slot as usize];
        (s.queue, s.head, s.done, s.range) = (n, head, 0, 0);
        (s.by_hand, s.syncing, s.waits, s.lane) = (false, false, false, false);
        s.iov.clear();
        s.ranges.clear();
        if let Some(queue) = self.queues[n as usize].as_mut() {
            queue.open += 1;
        }
        slot
    }

    fn begin(&mut self, n: u32, head: u16, request: Request) -> bool {
        let slot = self.slot(n, head);
        let Some(queue) = self.queues[n as usize].as_mut() else { return false };
        let memory = Rc::clone(queue.ring.memory());
        let s = &mut self.slots[slot as usize];
        (s.op, s.offset, s.len) = (request.op, request.offset, request.len);
        s.ranges.extend_from_slice(&self.parser.ranges);
        let mapped =
            self.parser.data.iter().all(|d| memory.translate(d.addr, d.len, &mut s.iov).is_some());
        let Some(status) = memory.pointer(request.status, 1) else {
            queue.open -= 1;
            self.free_slots.push(slot);
            self.break_queue(n, &"a status byte outside of the guest's memory");
            return false;
        };
        (s.status, s.memory) = (status, Some(memory));
        if !mapped || s.iov.len() > 1024 {
            queue.disk.failed("refused", &"data outside of the guest's memory");
            self.answer(slot, Status::IoError, 1);
            return true;
        }
        if request.op == Op::GetId {
            let len = request.len.min(ID_LEN) as usize;
            copy_to(&s.iov, 0, &queue.disk.serial[..len]);
            self.answer(slot, Status::Ok, len as u32 + 1);
            return true;
        }
        if let Reach::Ring(file) = queue.block.reach()
            && matches!(request.op, Op::Read | Op::Write)
            && !file.takes(&s.iov)
        {
            s.bounce = Some(Bounce::new(s.len));
        }
        self.step(slot);
        true
    }

    /// Submits what is next of a request.
    pub(super) fn step(&mut self, slot: u32) {
        let s = &mut self.slots[slot as usize];
        let Some(queue) = self.queues[s.queue as usize].as_mut() else { return };
        let tag = Tag::Slot(slot);
        let mirror = queue.mirror.as_ref().filter(|_| s.op.changes());
        let file = match (mirror, queue.block.reach()) {
            (None, Reach::Ring(file)) => queue.target.unwrap_or(Target::Plain(file.fd())),
            (mirror, reach) => {
                let Some(memory) = &s.memory else { return };
                let job = Job {
                    op: s.op,
                    offset: s.offset,
                    ranges: s.ranges.clone(),
                    data: GuestBuffers::new(s.iov.clone(), memory.share()),
                    durable: queue.writethrough && s.op != Op::Read,
                    slot,
                    reply: Arc::clone(&self.inbox),
                };
                s.lane = true;
                match (mirror, reach) {
                    (Some(mirror), _) => mirror.submit(job),
                    (None, Reach::Lane(lane)) => lane.submit(job),
                    (None, Reach::Ring(_)) => {}
                }
                return;
            }
        };
        if s.syncing {
            return self.uring.fdatasync(file, tag);
        }
        match s.op {
            Op::Read | Op::Write => {
                let offset = s.offset + s.done;
                let sync = queue.writethrough;
                if let Some(bounce) = &mut s.bounce {
                    let n = (s.len - s.done).min(bounce.bytes().len() as u64) as usize;
                    let buf = &mut bounce.bytes()[..n];
                    if s.op == Op::Write {
                        copy_from(&s.iov, s.done as usize, buf);
                    }
                    let iov = [libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: n }];
                    if s.op == Op::Read {
                        self.uring.read(file, &iov, offset, tag);
                    } else {
                        self.uring.write(file, &iov, offset, sync, tag);
                    }
                } else if s.done == 0 {
                    if s.op == Op::Read {
                        self.uring.read(file, &s.iov, offset, tag);
                    } else {
                        self.uring.write(file, &s.iov, offset, sync, tag);
                    }
                } else {
                    // After a short transfer: rare, so it may allocate.
                    let rest = skip(&s.iov, s.done as usize);
                    if s.op == Op::Read {
                        self.uring.read(file, &rest, offset, tag);
                    } else {
                        self.uring.write(file, &rest, offset, sync, tag);
                    }
                    // The list must be read before it goes.
                    self.uring.submit();
                }
            }
            Op::Flush => self.uring.fdatasync(file, tag),
            Op::Discard | Op::WriteZeroes => {
                let r = s.ranges[s.range];
                if s.by_hand {
                    let n = (r.len - s.done).min(ZEROS.len() as u64) as usize;
                    let iov =
                        [libc::iovec { iov_base: ZEROS.as_ptr().cast_mut().cast(), iov_len: n }];
                    return self.uring.write(file, &iov, r.offset + s.done, false, tag);
                }
                let punch = s.op == Op::Discard || r.unmap;
                let mode = if punch { PUNCH } else { ZERO };
                self.uring.fallocate(file, mode, r.offset, r.len, tag);
            }
            Op::GetId => {}
        }
    }

    /// A step of a request has ended.
    pub(super) fn completed(&mut self, slot: u32, result: i32) {
        let s = &mut self.slots[slot as usize];
        let Some(queue) = self.queues[s.queue as usize].as_mut() else { return };
        let lane = std::mem::take(&mut s.lane);
        let Ok(n) = u64::try_from(result) else {
            return self.step_failed(slot, -result);
        };
        if queue.disk.is_stalled() && s.op != Op::Read && self.waiting.is_empty() {
            queue.disk.set_stalled(None);
        }
        if lane {
            return self.answer_done(slot);
        }
        match s.op {
            _ if s.syncing => self.answer_done(slot),
            Op::Read | Op::Write => {
                if n == 0 {
                    // The file ends before the disk does: it was cut from outside.
                    return self.answer_error(slot, libc::EIO);
                }
                if s.op == Op::Read
                    && let Some(bounce) = &mut s.bounce
                {
                    copy_to(&s.iov, s.done as usize, &bounce.bytes()[..n as usize]);
                }
                s.done += n;
                if s.done < s.len { self.step(slot) } else { self.answer_done(slot) }
            }
            Op::Flush | Op::GetId => self.answer_done(slot),
            Op::Discard | Op::WriteZeroes => {
                if s.by_hand {
                    s.done += n;
                    if n > 0 && s.done < s.ranges[s.range].len {
                        return self.step(slot);
                    }
                }
                s.done = 0;
                s.range += 1;
                s.syncing = s.range == s.ranges.len() && queue.writethrough;
                if s.range < s.ranges.len() || s.syncing {
                    self.step(slot);
                } else {
                    self.answer_done(slot);
                }
            }
        }
    }

    fn step_failed(&mut self, slot: u32, errno: i32) {
        let s = &mut self.slots[slot as usize];
        let Some(queue) = self.queues[s.queue as usize].as_mut() else { return };
        match (errno, s.op) {
            (libc::EAGAIN | libc::EINTR | libc::ECANCELED, _) => self.step(slot),
            (libc::ENOSPC | libc::EDQUOT, _) => {
                let stops = queue.stopping.is_some();
                let keeps = queue.inflight.is_some() && queue.ring.log().is_none();
                match (stops, keeps) {
                    (true, true) => self.abandon(slot),
                    (true, false) => self.answer_error(slot, errno),
                    (false, _) => {
                        queue.disk.set_stalled(Some("no space left on the datastore"));
                        self.wait_for_space(slot);
                    }
                }
            }
            // A discard is a hint.
            (libc::EOPNOTSUPP, Op::Discard) => self.answer_done(slot),
            (libc::EOPNOTSUPP, Op::WriteZeroes) if !s.by_hand => {
                (s.by_hand, s.done) = (true, 0);
                self.step(slot);
            }
            // The file system is pickier than it said.
            (libc::EINVAL, Op::Read | Op::Write) if s.bounce.is_none() && s.done == 0 => {
                s.bounce = Some(Bounce::new(s.len));
                self.step(slot);
            }
            _ => self.answer_error(slot, errno),
        }
    }

    fn answer_done(&mut self, slot: u32) {
        let s = &self.slots[slot as usize];
        let written = if s.op == Op::Read { s.len.min(u64::from(u32::MAX) - 1) as u32 } else { 0 };
        if let Some(queue) = &self.queues[s.queue as usize] {
            queue.disk.counters.done(s.op, s.len);
        }
        self.answer(slot, Status::Ok, written + 1);
    }

    pub(super) fn answer_error(&mut self, slot: u32, errno: i32) {
        let s = &self.slots[slot as usize];
        if let Some(queue) = &self.queues[s.queue as usize] {
            let what = match s.op {
                Op::Read => "read",
                Op::Write => "write",
                Op::Flush => "flush",
                Op::Discard => "discard",
                Op::WriteZeroes => "write-zeroes",
                Op::GetId => "get-id",
            };
            queue.disk.failed(what, &std::io::Error::from_raw_os_error(errno));
        }
        self.answer(slot, Status::IoError, 1);
    }

    /// Writes the answer; it becomes visible when the queue publishes.
    fn answer(&mut self, slot: u32, status: Status, written: u32) {
        let s = &mut self.slots[slot as usize];
        let n = s.queue;
        let Some(queue) = self.queues[n as usize].as_mut() else { return };
        // SAFETY: `GuestMemory::pointer` gave it out for one byte, and `memory`
        // has kept the mapping since.
        unsafe { AtomicU8::from_ptr(s.status) }.store(status as u8, Ordering::Relaxed);
        if let (Some(log), Some(memory)) = (queue.ring.log(), &s.memory) {
            let gpa = |p: *const u8| memory.address_of(p);
            if s.op == Op::Read || s.op == Op::GetId {
                for v in &s.iov {
                    if let Some(at) = gpa(v.iov_base.cast()) {
                        log.mark(at, v.iov_len as u64);
                    }
                }
            }
            if let Some(at) = gpa(s.status) {
                log.mark(at, 1);
            }
        }
        queue.ring.push(s.head, written);
        if let Some(inflight) = &mut queue.inflight {
            inflight.chain(s.head);
        }
        queue.batch.push(s.head);
        self.free(slot);
        self.touch(n);
    }

    /// Leaves a request to whoever reads the in-flight record next.
    pub(super) fn abandon(&mut self, slot: u32) {
        let n = self.slots[slot as usize].queue;
        self.free(slot);
        self.touch(n);
    }

    fn free(&mut self, slot: u32) {
        let s = &mut self.slots[slot as usize];
        (s.memory, s.bounce) = (None, None);
        if let Some(queue) = self.queues[s.queue as usize].as_mut() {
            queue.open -= 1;
        }
        self.free_slots.push(slot);
    }
}

/// What of a request has not arrived, as far as it can be told.
fn missing(ring: &Vring, parser: &Parser, parsed: &Result<Request, Refusal>) -> Vec<Missing> {
    if ring.memory().arriving().is_none() {
        return Vec::new();
    }
    let mut missing = ring.take_missing();
    if missing.is_empty() {
        let mut look = |at, len| ring.memory().missing(at, len, &mut missing);
        match parsed {
            Ok(request) => {
                parser.data.iter().for_each(|d| look(d.addr, d.len));
                look(request.status, 1);
            }
            Err(Refusal::Answer { at, .. }) => look(*at, 1),
            Err(Refusal::Fatal(_) | Refusal::NoStatus) => {}
        }
    }
    missing
}

/// The list without its first `n` bytes.
fn skip(iov: &[libc::iovec], mut n: usize) -> Vec<libc::iovec> {
    let mut rest = Vec::with_capacity(iov.len());
    for v in iov {
        let cut = n.min(v.iov_len);
        n -= cut;
        if cut < v.iov_len {
            let iov_base = v.iov_base.wrapping_byte_add(cut);
            rest.push(libc::iovec { iov_base, iov_len: v.iov_len - cut });
        }
    }
    rest
}

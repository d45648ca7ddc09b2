//! A queue and its requests, as its worker holds them.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use super::ring::{Ring, Target};
use crate::disk::Disk;
use crate::io::Block;
use crate::mirror::Mirroring;
use crate::request::chain::{Descriptor, Source};
use crate::request::{Op, Range};
use crate::vhost::inflight::QueueInflight;
use crate::vhost::vring::{Pinned, Vring};

pub struct Queue {
    pub disk: Arc<Disk>,
    /// Let go with the queue.
    pub block: Arc<dyn Block>,
    pub index: u16,
    pub ring: Vring,
    /// The disk's file, if the ring reaches it.
    pub target: Option<Target>,
    pub kick: File,
    pub call: Option<File>,
    pub err: Option<File>,
    pub inflight: Option<QueueInflight>,
    pub writethrough: bool,
    pub paused: bool,
    /// Where writes go instead of to the disk alone.
    pub mirror: Option<Arc<Mirroring>>,
    /// Takes nothing until what is in flight has ended; kept by whoever waits for that.
    pub draining: Option<SyncSender<()>>,
    /// The guest broke the ring's rules.
    pub broken: bool,
    /// The next request has not all arrived: it is being fetched.
    pub fetching: bool,
    /// Requests of a predecessor, to be done before new ones.
    pub redo: VecDeque<u16>,
    /// Requests in the kernel, in a lane, or waiting for space.
    pub open: u32,
    /// Answers written and not yet published.
    pub batch: Vec<u16>,
    /// The driver was asked for a kick.
    pub armed: bool,
    pub stopping: Option<SyncSender<u16>>,
    /// Told apart from a queue that had the same place before.
    pub life: u32,
}

impl Queue {
    /// Shows the answers and tells the driver if it wants to know.
    pub fn publish(&mut self, uring: &mut Ring) {
        if self.batch.is_empty() {
            return;
        }
        self.ring.publish();
        if let Some(inflight) = &mut self.inflight {
            inflight.settle(&self.batch, self.ring.next_used());
        }
        self.batch.clear();
        if self.ring.wants_notice()
            && let Some(call) = &self.call
        {
            uring.signal(call.as_raw_fd());
        }
    }

    pub fn takes_requests(&self) -> bool {
        !self.paused
            && !self.broken
            && self.stopping.is_none()
            && self.draining.is_none()
            && !self.fetching
    }

    pub fn has_requests(&self) -> bool {
        self.takes_requests() && (!self.redo.is_empty() || self.ring.has_more())
    }
}

impl Source for Vring {
    fn descriptor(&self, index: u16) -> Option<Descriptor> {
        Vring::descriptor(self, index)
    }
    fn read(&self, addr: u64, buf: &mut [u8]) -> bool {
        Vring::read(self, addr, buf)
    }
}

/// A request on its way. Reused.
pub struct Slot {
    pub queue: u32,
    pub head: u16,
    pub op: Op,
    pub offset: u64,
    pub len: u64,
    /// Bytes of the request, or of its current range, that are done.
    pub done: u64,
    pub iov: Vec<libc::iovec>,
    pub ranges: Vec<Range>,
    pub range: usize,
    /// Where the status byte goes; within `memory`.
    pub status: *mut u8,
    pub memory: Option<Rc<Pinned>>,
    pub bounce: Option<Bounce>,
    /// Zeroing has to be written out.
    pub by_hand: bool,
    /// What was done is being made stable.
    pub syncing: bool,
    pub waits: bool,
    /// Others carry it out, all of it at once.
    pub lane: bool,
}

impl Slot {
    pub fn new() -> Slot {
        Slot {
            queue: 0,
            head: 0,
            op: Op::Flush,
            offset: 0,
            len: 0,
            done: 0,
            iov: Vec::new(),
            ranges: Vec::new(),
            range: 0,
            status: std::ptr::null_mut(),
            memory: None,
            bounce: None,
            by_hand: false,
            syncing: false,
            waits: false,
            lane: false,
        }
    }
}

/// A buffer for what direct I/O does not take from the guest as it is.
pub struct Bounce {
    bytes: Vec<u8>,
    /// Of the first byte that is aligned.
    start: usize,
}

impl Bounce {
    const MAX: usize = 128 << 10;
    /// No device asks for more.
    const ALIGN: usize = 4096;

    pub fn new(len: u64) -> Bounce {
        let len = usize::try_from(len).unwrap_or(Self::MAX).min(Self::MAX);
        let bytes = vec![0; len + Self::ALIGN];
        let start = bytes.as_ptr().align_offset(Self::ALIGN);
        Bounce { bytes, start }
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        let end = self.bytes.len() - Self::ALIGN + self.start;
        &mut self.bytes[self.start..end]
    }
}

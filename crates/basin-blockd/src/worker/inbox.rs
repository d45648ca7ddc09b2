//! What other threads tell a worker.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};

use basin_model::VolumeId;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::disk::Disk;
use crate::io::Block;
use crate::mirror::Mirroring;
use crate::vhost::inflight::QueueInflight;
use crate::vhost::vring::RingSetup;

/// A queue to serve.
pub struct Start {
    pub disk: Arc<Disk>,
    pub block: Arc<dyn Block>,
    pub index: u16,
    pub ring: RingSetup,
    /// Where the front end believes the ring stands.
    pub next_avail: u16,
    pub kick: File,
    pub call: Option<File>,
    pub err: Option<File>,
    pub inflight: Option<QueueInflight>,
    /// The driver knows no flush: each write must be stable when answered.
    pub writethrough: bool,
}

/// A queue within a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueKey(pub u32);

pub enum Message {
    Start(Box<Start>, SyncSender<Option<QueueKey>>),
    /// The ring's memory, addresses or log changed; false if they are unusable.
    Move(QueueKey, Box<RingSetup>, SyncSender<bool>),
    Call(QueueKey, Option<File>, SyncSender<()>),
    Err(QueueKey, Option<File>),
    /// Take no more requests, or take them again.
    Pause(QueueKey, bool, SyncSender<()>),
    /// The disk's writes go through this mirror from now on, or through none. The
    /// channel closes when no write of before is in flight.
    Tap(VolumeId, Option<Arc<Mirroring>>, SyncSender<()>),
    /// Answers with the ring's next available index when nothing is in flight.
    Stop(QueueKey, SyncSender<u16>),
    /// The memory of this queue's next request has; of this life of its.
    Arrived(QueueKey, u32),
    LaneDone(u32, Result<(), i32>),
}

/// A worker's letter box.
pub struct Inbox {
    messages: Mutex<Vec<Message>>,
    wake: EventFd,
}

impl Inbox {
    pub fn new() -> io::Result<Inbox> {
        Ok(Inbox { messages: Mutex::default(), wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)? })
    }

    pub fn wake_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    pub fn send(&self, message: Message) {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        messages.push(message);
        // Full only if it is lit already.
        let _ = self.wake.write(1);
    }

    pub fn lane_done(&self, slot: u32, result: Result<(), i32>) {
        self.send(Message::LaneDone(slot, result));
    }

    /// All messages, in order; `into` is empty before.
    pub fn take(&self, into: &mut Vec<Message>) {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut *messages, into);
    }
}

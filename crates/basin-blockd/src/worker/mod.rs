//! The data path: a few threads, each with one io_uring and the queues given to it.
//!
//! How a request travels:
//!
//! 1. The driver puts a chain into the available ring and kicks. The kick is an
//!    eventfd on which the worker's io_uring has a multishot poll, so that it
//!    arrives as one more completion and never needs to be read.
//! 2. The worker takes the head, notes it in the in-flight record
//!    ([`crate::vhost::inflight`]), copies the descriptors once and checks the
//!    request ([`crate::request`]). From here on nothing is read from the ring again.
//! 3. Guest addresses become pointers, and the request goes into the io_uring of
//!    the same thread, zero-copy; or, for formats that need more, to a lane
//!    ([`crate::io::lane`]). Between 2 and 3 is where scheduling belongs.
//! 4. The completion writes status and used element; when all completions at hand
//!    are worked off, each queue raises its used index once for the batch, clears
//!    the in-flight marks, and signals the call eventfd if the driver asked for it
//!    (event index). The signal is an entry of the io_uring too: it leaves with the
//!    next submission at no extra system call, and a front end that makes its
//!    eventfd block cannot block the worker.
//!
//! While there is work the driver is not asked for kicks. Before it sleeps the
//! worker looks for a short, adaptive time ([`poll`]), then asks for kicks, looks
//! once more, and only then waits.
//!
//! A request that finds no space waits and is tried again each second: the guest
//! sees a slow disk, not an error. Other errors go to the guest.

mod engine;
mod execute;
pub mod inbox;
pub mod poll;
mod queue;
mod ring;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use engine::Engine;
use inbox::{Inbox, Message, QueueKey, Start};

use basin_model::VolumeId;

use crate::mirror::Mirroring;
use crate::vhost::vring::RingSetup;

/// Deep enough for everything a worker calls, with room to spare.
const STACK: usize = 256 << 10;

/// The threads of the data path.
pub struct Pool {
    inboxes: Vec<Arc<Inbox>>,
    next: AtomicUsize,
}

impl Pool {
    pub fn start(workers: usize, poll: Duration) -> io::Result<Pool> {
        let mut inboxes = Vec::new();
        for n in 0..workers.max(1) {
            let inbox = Arc::new(Inbox::new()?);
            let (ready, started) = sync_channel(1);
            let theirs = Arc::clone(&inbox);
            std::thread::Builder::new()
                .name(format!("worker-{n}"))
                .stack_size(STACK)
                .spawn(move || Engine::start(theirs, poll, &ready))?;
            started.recv().map_err(io::Error::other)??;
            inboxes.push(inbox);
        }
        Ok(Pool { inboxes, next: AtomicUsize::new(0) })
    }

    /// Gives a queue to a worker; `None` if its ring is not within the guest's memory.
    pub fn add(&self, start: Start) -> Option<QueueHandle> {
        let n = self.next.fetch_add(1, Ordering::Relaxed) % self.inboxes.len();
        let inbox = Arc::clone(&self.inboxes[n]);
        let key = ask(&inbox, |reply| Message::Start(Box::new(start), reply)).flatten()?;
        Some(QueueHandle { inbox, key })
    }

    /// The writes of a volume go through a mirror from now on, or no longer; returns
    /// when none is under way that does not.
    pub fn tap(&self, volume: VolumeId, mirror: Option<&Arc<Mirroring>>) {
        let taps: Vec<_> = self
            .inboxes
            .iter()
            .map(|inbox| {
                let (reply, done) = sync_channel(0);
                inbox.send(Message::Tap(volume, mirror.cloned(), reply));
                done
            })
            .collect();
        // They answer by letting the channel go.
        taps.iter().for_each(|done| {
            let _ = done.recv();
        });
    }
}

/// `None` only if the worker is gone, which ends the process anyway.
fn ask<T>(inbox: &Inbox, message: impl FnOnce(SyncSender<T>) -> Message) -> Option<T> {
    let (reply, answer) = sync_channel(1);
    inbox.send(message(reply));
    answer.recv().ok()
}

/// A queue that a worker serves. To be stopped before it is dropped.
pub struct QueueHandle {
    inbox: Arc<Inbox>,
    key: QueueKey,
}

impl QueueHandle {
    /// The memory, addresses or log changed.
    pub fn relocate(&self, ring: RingSetup) -> bool {
        ask(&self.inbox, |reply| Message::Move(self.key, Box::new(ring), reply)).unwrap_or(false)
    }

    pub fn set_call(&self, call: Option<std::fs::File>) {
        ask(&self.inbox, |reply| Message::Call(self.key, call, reply));
    }

    pub fn set_err(&self, err: Option<std::fs::File>) {
        self.inbox.send(Message::Err(self.key, err));
    }

    pub fn pause(&self, paused: bool) {
        ask(&self.inbox, |reply| Message::Pause(self.key, paused, reply));
    }

    /// Takes no more requests, waits for those in flight; where the ring stands.
    pub fn stop(self) -> Option<u16> {
        ask(&self.inbox, |reply| Message::Stop(self.key, reply))
    }

    /// Begins to stop; the receiver has the answer. For stopping many at once.
    pub fn begin_stop(self) -> std::sync::mpsc::Receiver<u16> {
        let (reply, answer) = sync_channel(1);
        self.inbox.send(Message::Stop(self.key, reply));
        answer
    }
}

//! The loop of a worker.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use super::inbox::{Inbox, Message, QueueKey, Start};
use super::poll::Adaptive;
use super::queue::{Queue, Slot};
use super::ring::{Completion, Ring, Tag};
use crate::io::Reach;
use crate::mirror::Mirroring;
use crate::request::Parser;
use crate::vhost::vring::Vring;
use basin_model::VolumeId;

/// Requests that a queue may start before it is another queue's turn.
const TURN: u32 = 64;
/// How often a request that found no space is tried again.
const RETRY: Duration = Duration::from_secs(1);

pub struct Engine {
    pub(super) uring: Ring,
    pub(super) inbox: Arc<Inbox>,
    pub(super) queues: Vec<Option<Queue>>,
    pub(super) slots: Vec<Slot>,
    pub(super) free_slots: Vec<u32>,
    pub(super) parser: Parser,
    /// Queues with answers to publish or requests to take.
    pub(super) touched: Vec<u32>,
    /// Requests that wait for space, and when they are tried again.
    pub(super) waiting: VecDeque<(Instant, u32)>,
    /// Queues whose drivers were not asked for kicks.
    hot: Vec<u32>,
    poll: Adaptive,
    lives: u32,
    completions: Vec<Completion>,
    messages: Vec<Message>,
}

impl Engine {
    /// The body of a worker's thread. Reports whether it could begin.
    pub fn start(inbox: Arc<Inbox>, poll: Duration, ready: &SyncSender<io::Result<()>>) {
        let uring = match Ring::new() {
            Ok(uring) => uring,
            Err(e) => {
                let _ = ready.send(Err(io::Error::other(format!("cannot set up io_uring: {e}"))));
                return;
            }
        };
        let mut engine = Engine {
            uring,
            inbox,
            queues: Vec::new(),
            slots: Vec::new(),
            free_slots: Vec::new(),
            parser: Parser::default(),
            touched: Vec::new(),
            waiting: VecDeque::new(),
            hot: Vec::new(),
            poll: Adaptive::new(poll),
            lives: 0,
            completions: Vec::new(),
            messages: Vec::new(),
        };
        engine.uring.watch(engine.inbox.wake_fd(), Tag::Inbox);
        let _ = ready.send(Ok(()));
        loop {
            engine.turn();
        }
    }

    fn turn(&mut self) {
        self.reap();
        self.retry();
        let mut turn = std::mem::take(&mut self.touched);
        for n in &turn {
            self.serve(*n);
        }
        turn.clear();
        if self.touched.is_empty() {
            std::mem::swap(&mut self.touched, &mut turn);
            self.rest();
        } else {
            // Some queue has more: hand over what there is, and go round.
            self.uring.submit();
        }
    }

    pub(super) fn touch(&mut self, queue: u32) {
        if !self.touched.contains(&queue) {
            self.touched.push(queue);
        }
    }

    fn reap(&mut self) {
        let mut completions = std::mem::take(&mut self.completions);
        self.uring.reap(&mut completions);
        for c in completions.drain(..) {
            match c.tag {
                Tag::Slot(slot) => self.completed(slot, c.result),
                Tag::Kick(n, life) => {
                    let Some(queue) = self.queue_of(n, life) else { continue };
                    let fd = queue.kick.as_raw_fd();
                    if !c.more && c.result >= 0 {
                        self.uring.watch(fd, c.tag);
                    }
                    self.touch(n);
                }
                Tag::Inbox => {
                    if !c.more {
                        self.uring.watch(self.inbox.wake_fd(), Tag::Inbox);
                    }
                    self.read_inbox();
                }
                Tag::Ignore => {}
            }
        }
        self.completions = completions;
    }

    fn queue_of(&self, n: u32, life: u32) -> Option<&Queue> {
        let queue = self.queues.get(n as usize)?.as_ref()?;
        (queue.life & 0x3fff_ffff == life).then_some(queue)
    }

    pub(super) fn queue(&mut self, n: u32) -> Option<&mut Queue> {
        self.queues.get_mut(n as usize)?.as_mut()
    }

    /// Takes requests of a queue and publishes what is answered.
    fn serve(&mut self, n: u32) {
        let Some(queue) = self.queue(n) else { return };
        if queue.takes_requests() {
            if queue.armed {
                queue.armed = false;
                queue.ring.suppress_kicks();
                self.hot.push(n);
            }
            for _ in 0..TURN {
                if !self.take_one(n) {
                    break;
                }
            }
        }
        let Some(queue) = self.queues[n as usize].as_mut() else { return };
        queue.publish(&mut self.uring);
        if queue.has_requests() {
            self.touch(n);
        }
        self.finish_drain(n);
        self.finish_stop(n);
    }

    /// Nothing to do right now: look for a while, then sleep.
    fn rest(&mut self) {
        let begin = Instant::now();
        let window = self.poll.window();
        if !window.is_zero() {
            self.uring.submit();
            loop {
                if self.uring.is_ready() {
                    self.poll.waited(begin.elapsed());
                    return;
                }
                if let Some(n) = self.find_hot() {
                    self.poll.waited(begin.elapsed());
                    return self.touch(n);
                }
                if begin.elapsed() >= window {
                    break;
                }
                std::hint::spin_loop();
            }
        }
        let mut hot = std::mem::take(&mut self.hot);
        for n in hot.drain(..) {
            let Some(queue) = self.queue(n) else { continue };
            queue.armed = true;
            if queue.ring.request_kick() && queue.takes_requests() {
                self.touch(n);
            }
        }
        self.hot = hot;
        if !self.touched.is_empty() {
            return;
        }
        let limit = self
            .waiting
            .front()
            .map(|(at, _)| at.saturating_duration_since(begin).max(Duration::from_millis(1)));
        self.uring.submit_and_wait(limit);
        self.poll.waited(begin.elapsed());
    }

    fn find_hot(&self) -> Option<u32> {
        let has = |n: &&u32| {
            self.queues.get(**n as usize).and_then(Option::as_ref).is_some_and(Queue::has_requests)
        };
        self.hot.iter().find(has).copied()
    }

    fn read_inbox(&mut self) {
        // Entries may name descriptors that a message is about to close.
        self.uring.submit();
        let mut messages = std::mem::take(&mut self.messages);
        self.inbox.take(&mut messages);
        for message in messages.drain(..) {
            match message {
                Message::Start(start, reply) => {
                    let _ = reply.send(self.add(*start));
                }
                Message::Move(QueueKey(n), setup, reply) => {
                    let moved = self.queue(n).is_some_and(|q| match q.ring.moved(&setup) {
                        Some(ring) => {
                            q.ring = ring;
                            true
                        }
                        // The old mapping stays good: front ends take regions away
                        // and add them again in another cut.
                        None => false,
                    });
                    let _ = reply.send(moved);
                }
                Message::Call(QueueKey(n), call, reply) => {
                    if let Some(queue) = self.queue(n) {
                        queue.call = call;
                    }
                    let _ = reply.send(());
                }
                Message::Err(QueueKey(n), err) => {
                    if let Some(queue) = self.queue(n) {
                        queue.err = err;
                    }
                }
                Message::Pause(QueueKey(n), paused, reply) => {
                    if let Some(queue) = self.queue(n) {
                        queue.paused = paused;
                        self.touch(n);
                    }
                    let _ = reply.send(());
                }
                Message::Tap(volume, mirror, reply) => self.tap(volume, mirror.as_ref(), &reply),
                Message::Stop(QueueKey(n), reply) => self.begin_stop(n, reply),
                Message::Arrived(QueueKey(n), life) => {
                    if let Some(queue) = self.queue(n).filter(|queue| queue.life == life) {
                        queue.fetching = false;
                        self.touch(n);
                    }
                }
                Message::LaneDone(slot, result) => {
                    self.completed(slot, result.err().map_or(0, |errno| -errno));
                }
            }
        }
        self.messages = messages;
    }

    fn add(&mut self, start: Start) -> Option<QueueKey> {
        let Start {
            disk,
            block,
            index,
            ring,
            next_avail,
            kick,
            call,
            err,
            mut inflight,
            writethrough,
        } = start;
        let mut ring = Vring::new(&ring, next_avail)?;
        let redo: VecDeque<u16> =
            inflight.as_mut().map(|i| i.recover(ring.next_used()).into()).unwrap_or_default();
        if inflight.is_some() {
            // What was taken is answered or to be redone; a front end that lost its
            // back end knows only what was answered.
            ring.set_next_avail(ring.next_used().wrapping_add(redo.len() as u16));
        }
        if !redo.is_empty() {
            tracing::info!(volume = %disk.volume, queue = index, count = redo.len(),
                "doing again what was not answered");
        }
        let target = match block.reach() {
            Reach::Ring(file) => Some(self.uring.register(file.fd())),
            Reach::Lane(_) => None,
        };
        let n = match self.queues.iter().position(Option::is_none) {
            Some(n) => n,
            None => {
                self.queues.push(None);
                self.queues.len() - 1
            }
        } as u32;
        self.lives = self.lives.wrapping_add(1);
        let life = self.lives;
        self.uring.watch(kick.as_raw_fd(), Tag::Kick(n, life & 0x3fff_ffff));
        let mirror = disk.tap();
        self.queues[n as usize] = Some(Queue {
            mirror,
            disk,
            block,
            index,
            ring,
            target,
            kick,
            call,
            err,
            inflight,
            writethrough,
            paused: false,
            draining: None,
            broken: false,
            fetching: false,
            redo,
            open: 0,
            batch: Vec::new(),
            armed: true,
            stopping: None,
            life,
        });
        self.touch(n);
        Some(QueueKey(n))
    }

    fn tap(&mut self, volume: VolumeId, mirror: Option<&Arc<Mirroring>>, reply: &SyncSender<()>) {
        for n in 0..self.queues.len() as u32 {
            let Some(queue) = self.queue(n).filter(|q| q.disk.volume == volume) else { continue };
            queue.mirror = mirror.cloned();
            // Without one, order is the guest's own business again.
            queue.draining = mirror.is_some().then(|| reply.clone());
            self.touch(n);
        }
    }

    /// Goes on when all that is left waits for space: it is tried again from the start.
    fn finish_drain(&mut self, n: u32) {
        let Some(queue) = self.queue(n).filter(|q| q.draining.is_some()) else { return };
        let open = queue.open as usize;
        let waits = |slot: &u32| self.slots[*slot as usize].queue == n;
        if open == self.waiting.iter().filter(|(_, slot)| waits(slot)).count()
            && let Some(queue) = self.queue(n)
        {
            queue.draining = None;
            if queue.has_requests() {
                self.touch(n);
            }
        }
    }

    fn begin_stop(&mut self, n: u32, reply: SyncSender<u16>) {
        let Some(queue) = self.queue(n) else {
            let _ = reply.send(0);
            return;
        };
        queue.stopping = Some(reply);
        let keeps_record = queue.inflight.is_some() && queue.ring.log().is_none();
        // Requests that wait for space would hold up the stop. Their record says
        // that they are to be done again; without a record they fail.
        let (theirs, others): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|(_, slot)| self.slots[*slot as usize].queue == n);
        self.waiting = others;
        for (_, slot) in theirs {
            if keeps_record {
                self.abandon(slot);
            } else {
                self.answer_error(slot, libc::ENOSPC);
            }
        }
        self.touch(n);
    }

    fn finish_stop(&mut self, n: u32) {
        let Some(queue) = self.queues[n as usize].as_mut() else { return };
        if queue.open > 0 {
            return;
        }
        let Some(reply) = queue.stopping.take() else { return };
        // The signal of the last answers must leave before its descriptor closes.
        self.uring.submit();
        if let Some(queue) = self.queues[n as usize].take() {
            self.uring.forget(Tag::Kick(n, queue.life & 0x3fff_ffff));
            if let Some(target) = queue.target {
                self.uring.unregister(target);
            }
            let base = queue.ring.next_avail();
            // Before the answer: whoever asked may rely on the file being let go.
            drop(queue);
            let _ = reply.send(base);
        }
        self.hot.retain(|h| *h != n);
        self.touched.retain(|t| *t != n);
        self.trim();
    }

    /// Gives back what a burst left behind once nothing is going on.
    fn trim(&mut self) {
        if self.free_slots.len() == self.slots.len() {
            self.slots = Vec::new();
            self.free_slots = Vec::new();
        }
    }

    fn retry(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let now = Instant::now();
        while let Some((at, slot)) = self.waiting.front().copied()
            && at <= now
        {
            self.waiting.pop_front();
            self.slots[slot as usize].waits = false;
            self.step(slot);
        }
    }

    /// Tries the request again later.
    pub(super) fn wait_for_space(&mut self, slot: u32) {
        self.slots[slot as usize].waits = true;
        self.waiting.push_back((Instant::now() + RETRY, slot));
    }

    /// The guest broke the rules: the queue stops, the front end is told.
    pub(super) fn break_queue(&mut self, n: u32, why: &dyn std::fmt::Display) {
        let Some(queue) = self.queue(n) else { return };
        queue.broken = true;
        let (volume, index) = (queue.disk.volume, queue.index);
        let err = queue.err.as_ref().map(File::as_raw_fd);
        tracing::warn!(%volume, queue = index, %why, "the guest broke the rules: queue stopped");
        if let Some(err) = err {
            self.uring.signal(err);
        }
    }
}

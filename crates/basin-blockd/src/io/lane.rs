//! Threads for disks whose requests cannot go straight into a ring. They come
//! with the load and go when there is none.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vm_memory::VolatileSlice;

use crate::request::{Op, Range};
use crate::vhost::memory::GuestMemory;
use crate::worker::inbox::Inbox;

/// More in parallel gains little: the metadata's lock is what they wait for.
const MAX_THREADS: usize = 8;
const IDLE: Duration = Duration::from_secs(5);
/// The library's depth is modest; inflating a cluster takes some tens of KiB.
const STACK: usize = 512 << 10;

/// A request with everything it needs, so that it does not depend on its queue.
pub struct Job {
    pub op: Op,
    pub offset: u64,
    pub ranges: Vec<Range>,
    pub data: GuestBuffers,
    /// Must be stable when answered.
    pub durable: bool,
    pub slot: u32,
    pub reply: Arc<Inbox>,
}

/// Pieces of guest memory, and the mapping that keeps them there.
pub struct GuestBuffers {
    iov: Vec<libc::iovec>,
    _memory: Arc<GuestMemory>,
}

// SAFETY: the pointers are into a shared mapping that `_memory` keeps alive; all
// access is volatile and needs no thread's identity.
unsafe impl Send for GuestBuffers {}
// SAFETY: as above; whoever shares a reference races no more than the guest does.
unsafe impl Sync for GuestBuffers {}

impl GuestBuffers {
    /// `iov` came from `memory`.
    pub fn new(iov: Vec<libc::iovec>, memory: Arc<GuestMemory>) -> GuestBuffers {
        GuestBuffers { iov, _memory: memory }
    }

    pub fn len(&self) -> u64 {
        self.iov.iter().map(|v| v.iov_len as u64).sum()
    }

    /// Copies guest memory, from `skip` bytes on, into `buf`.
    pub fn read(&self, skip: usize, buf: &mut [u8]) {
        copy_from(&self.iov, skip, buf);
    }

    /// Copies `buf` into guest memory, from `skip` bytes on.
    pub fn write(&self, skip: usize, buf: &[u8]) {
        copy_to(&self.iov, skip, buf);
    }
}

/// Copies guest memory out. The pieces must be mapped.
pub fn copy_from(iov: &[libc::iovec], skip: usize, buf: &mut [u8]) {
    each_piece(iov, skip, buf.len(), |slice, done, n| {
        slice.copy_to(&mut buf[done..done + n]);
    });
}

/// Copies into guest memory. The pieces must be mapped.
pub fn copy_to(iov: &[libc::iovec], skip: usize, buf: &[u8]) {
    each_piece(iov, skip, buf.len(), |slice, done, n| {
        slice.copy_from(&buf[done..done + n]);
    });
}

fn each_piece(
    iov: &[libc::iovec],
    mut skip: usize,
    len: usize,
    mut copy: impl FnMut(VolatileSlice<'_>, usize, usize),
) {
    let mut done = 0;
    for v in iov {
        if done == len {
            break;
        }
        let at = skip.min(v.iov_len);
        skip -= at;
        let n = (v.iov_len - at).min(len - done);
        if n > 0 {
            let base = v.iov_base.cast::<u8>().wrapping_add(at);
            // SAFETY: iovecs are made by `GuestMemory::translate` only, and whoever
            // holds them holds the mapping.
            copy(unsafe { VolatileSlice::new(base, n) }, done, n);
            done += n;
        }
    }
}

/// Carries out a job; an errno on failure.
pub type Execute = dyn Fn(&Job) -> Result<(), i32> + Send + Sync;

/// The threads of one disk.
pub struct Lane {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    ended: Condvar,
}

struct State {
    /// Gone with the lane; it holds the image, and so the image's lock.
    execute: Option<Arc<Execute>>,
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut state = self.lock();
        loop {
            if let (Some(execute), Some(job)) = (state.execute.clone(), state.jobs.pop_front()) {
                drop(state);
                carry_out(&*execute, job);
                drop(execute);
                state = self.lock();
                continue;
            }
            if state.execute.is_none() {
                break;
            }
            state.idle += 1;
            let (next, timeout) =
                self.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = next;
            state.idle -= 1;
            if timeout.timed_out() && state.jobs.is_empty() {
                break;
            }
        }
        state.threads -= 1;
        self.ended.notify_all();
    }
}

fn carry_out(execute: &Execute, job: Job) {
    // A corrupt image may trip an assertion of the library: that disk's request
    // fails, the other disks go on.
    let outcome = catch_unwind(AssertUnwindSafe(|| execute(&job)));
    let result = outcome.unwrap_or(Err(libc::EIO));
    let (slot, reply) = (job.slot, Arc::clone(&job.reply));
    drop(job);
    reply.lane_done(slot, result);
}

impl Lane {
    pub fn new(execute: Arc<Execute>) -> Lane {
        let state = State { execute: Some(execute), jobs: VecDeque::new(), threads: 0, idle: 0 };
        let (work, ended) = (Condvar::new(), Condvar::new());
        Lane { shared: Arc::new(Shared { state: Mutex::new(state), work, ended }) }
    }

    /// Queues a job; the answer comes to its inbox.
    pub fn submit(&self, job: Job) {
        let mut state = self.shared.lock();
        state.jobs.push_back(job);
        if state.idle >= state.jobs.len() || state.threads >= MAX_THREADS {
            self.shared.work.notify_one();
            return;
        }
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name("lane".into()).stack_size(STACK);
        if thread.spawn(move || shared.run()).is_ok() {
            state.threads += 1;
        } else if state.threads == 0
            && let Some(job) = state.jobs.pop_back()
        {
            drop(state);
            job.reply.lane_done(job.slot, Err(libc::EAGAIN));
        }
    }
}

impl Drop for Lane {
    /// Returns when no thread holds the image any more.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.execute = None;
        self.shared.work.notify_all();
        while state.threads > 0 {
            state = self.shared.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

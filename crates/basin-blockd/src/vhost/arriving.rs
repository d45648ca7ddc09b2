//! A guest whose memory still arrives: the target of a post-copy.
//!
//! What has not arrived is a hole in the guest's memory. Who touches it waits, for as long
//! as the network takes, or for ever: the front end is told over the userfaultfd that it
//! got from here, fetches the page, and wakes him. So there is one thread for touching,
//! and nobody else ever does (decision 0191):
//!
//! - Who needs guest memory looks first what of it is missing ([`Arriving::missing`]: the
//!   kernel is asked, nothing is touched), has it fetched, and goes on with something else.
//! - The thread touches by `MADV_POPULATE_READ`, so that it can be let go when nobody
//!   brings the page any more: with an error, and without filling the hole. The guest may
//!   live on, and a page that is there already would be refused when it comes at last.
//!
//! - It touches a mapping of its own. The one that requests use has no holes to wait in: a
//!   front end that takes pages away again harms its own guest, and stops no worker.
//!
//! What is there stays there: balloons are held while memory arrives.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vm_memory::MmapRegion;

const PAGE: usize = 4096;
const STACK: usize = 128 << 10;
/// After an error that nobody expects.
const AGAIN: Duration = Duration::from_secs(1);

const API: u64 = 0xaa;
const MISSING: u64 = 1;
// The kernel's `_IOWR(0xaa, 0x3f, uffdio_api)` and so on.
const UFFDIO_API: libc::Ioctl = 0xc018_aa3f_u32 as libc::Ioctl;
const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00_u32 as libc::Ioctl;
const UFFDIO_UNREGISTER: libc::Ioctl = 0x8010_aa01_u32 as libc::Ioctl;
const UFFDIO_WAKE: libc::Ioctl = 0x8010_aa02_u32 as libc::Ioctl;

/// See the module.
pub struct Arriving {
    uffd: OwnedFd,
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Arrives,
    /// All of it.
    There,
    /// Nobody wants it any more.
    GivenUp,
}

struct State {
    stage: Stage,
    /// Kept: no other mapping may get these addresses.
    watched: Vec<Arc<Watched>>,
    jobs: VecDeque<Job>,
}

struct Job {
    missing: Vec<Missing>,
    then: Box<dyn FnOnce() + Send>,
}

/// A second mapping of some guest memory, in which whoever touches a hole waits.
pub struct Watched(MmapRegion<()>);

impl Watched {
    pub fn start(&self) -> *mut u8 {
        self.0.as_ptr()
    }
}

/// A page that was not there.
pub struct Missing {
    watched: Arc<Watched>,
    offset: usize,
}

/// Whether this kernel lets this process do it.
pub fn possible() -> bool {
    open().is_ok()
}

fn open() -> io::Result<OwnedFd> {
    // Faults of the kernel on behalf of this process count as well.
    // SAFETY: takes a number and gives out a descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let uffd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    let mut api = [API, 0, 0];
    // SAFETY: `api` is laid out as the kernel's `uffdio_api`.
    check(unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_API, &raw mut api) })?;
    Ok(uffd)
}

impl Arriving {
    /// Starts the thread that touches; it ends with [`Arriving::give_up`].
    pub fn new() -> io::Result<Arc<Arriving>> {
        let state = State { stage: Stage::Arrives, watched: Vec::new(), jobs: VecDeque::new() };
        let state = Mutex::new(state);
        let arriving = Arc::new(Arriving { uffd: open()?, state, news: Condvar::new() });
        let this = Arc::clone(&arriving);
        std::thread::Builder::new()
            .name("arriving".into())
            .stack_size(STACK)
            .spawn(move || this.touch())?;
        Ok(arriving)
    }

    /// For the front end, which is told there what is missed.
    pub fn descriptor(&self) -> io::Result<File> {
        self.uffd.try_clone().map(File::from)
    }

    /// From now on, whoever touches a hole in this mapping waits. `None`: all is there.
    pub fn watch(&self, map: MmapRegion<()>) -> io::Result<Option<Arc<Watched>>> {
        let mut state = self.state();
        if state.stage != Stage::Arrives {
            return Ok(None);
        }
        // A huge page would be filled with zeros around what has arrived.
        // SAFETY: advice on a mapping of our own; it changes no contents.
        unsafe { libc::madvise(map.as_ptr().cast(), map.size(), libc::MADV_NOHUGEPAGE) };
        let mut range = [map.as_ptr().addr() as u64, map.size() as u64, MISSING, 0];
        // SAFETY: `range` is laid out as the kernel's `uffdio_register`.
        check(unsafe { libc::ioctl(self.uffd.as_raw_fd(), UFFDIO_REGISTER, &raw mut range) })?;
        let watched = Arc::new(Watched(map));
        state.watched.push(Arc::clone(&watched));
        Ok(Some(watched))
    }

    /// Appends what of these bytes, which are within the mapping, is not there. Does not
    /// wait; what is swapped out may count as missing.
    pub fn missing(&self, watched: &Arc<Watched>, offset: u64, len: u64, out: &mut Vec<Missing>) {
        if len == 0 || self.state().stage == Stage::There {
            return;
        }
        let first = offset as usize / PAGE;
        let pages = (offset + len).div_ceil(PAGE as u64) as usize - first;
        let at = watched.start().wrapping_byte_add(first * PAGE);
        let mut there = vec![0u8; pages];
        // SAFETY: the pages are within the mapping, and `there` has a byte for each.
        if unsafe { libc::mincore(at.cast(), pages * PAGE, there.as_mut_ptr()) } != 0 {
            there.fill(0);
        }
        let missing = there.iter().enumerate().filter(|(_, there)| **there & 1 == 0);
        let missing = missing.map(|(n, _)| (first + n) * PAGE);
        out.extend(missing.map(|offset| Missing { watched: Arc::clone(watched), offset }));
    }

    /// Has this fetched and calls `then`, from another thread; never, if it is given up.
    pub fn fetch(&self, missing: Vec<Missing>, then: Box<dyn FnOnce() + Send>) {
        let mut state = self.state();
        if state.stage != Stage::GivenUp {
            state.jobs.push_back(Job { missing, then });
            self.news.notify_one();
        }
    }

    /// All is there.
    pub fn end(&self) {
        let watched = {
            let mut state = self.state();
            if state.stage != Stage::Arrives {
                return;
            }
            state.stage = Stage::There;
            std::mem::take(&mut state.watched)
        };
        for memory in watched {
            // Wakes who waits as well: the front end has stopped to listen by now.
            self.over(UFFDIO_UNREGISTER, &memory);
        }
    }

    /// Nobody wants what is missing any more: it stays missing, and who waits is let go.
    pub fn give_up(&self) {
        let watched = {
            let mut state = self.state();
            state.stage = Stage::GivenUp;
            state.jobs.clear();
            std::mem::take(&mut state.watched)
        };
        self.news.notify_one();
        for memory in watched {
            let (start, len) = (memory.start(), memory.0.size());
            // SAFETY: a mapping that `memory` keeps, in which nobody reads or writes: it is
            // touched by the kernel only, which takes a refusal.
            if unsafe { libc::mprotect(start.cast(), len, libc::PROT_NONE) } != 0 {
                let why = io::Error::last_os_error();
                tracing::error!(%why, "memory that never came cannot be closed");
            }
            self.over(UFFDIO_WAKE, &memory);
        }
    }

    fn over(&self, what: libc::Ioctl, memory: &Watched) {
        let mut range = [memory.start().addr() as u64, memory.0.size() as u64];
        // SAFETY: `range` is laid out as the kernel's `uffdio_range`.
        if let Err(why) = check(unsafe { libc::ioctl(self.uffd.as_raw_fd(), what, &raw mut range) })
        {
            tracing::error!(%why, "who waits for memory cannot be woken");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self) {
        while let Some(job) = self.next() {
            if job.missing.iter().all(|page| self.wait_for(page)) {
                (job.then)();
            }
        }
    }

    fn next(&self) -> Option<Job> {
        let mut state = self.state();
        loop {
            if state.stage == Stage::GivenUp {
                return None;
            }
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            state = self.news.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// False if it does not come.
    fn wait_for(&self, page: &Missing) -> bool {
        let at = page.watched.start().wrapping_byte_add(page.offset);
        loop {
            // SAFETY: the page is within a mapping that `page` keeps; reading changes
            // nothing that is there.
            if unsafe { libc::madvise(at.cast(), PAGE, libc::MADV_POPULATE_READ) } == 0 {
                return true;
            }
            let why = io::Error::last_os_error();
            match (self.state().stage, why.raw_os_error()) {
                (Stage::GivenUp, _) => return false,
                (_, Some(libc::EAGAIN | libc::EINTR)) => {}
                _ => {
                    tracing::error!(%why, "a page of the guest's memory cannot be had");
                    std::thread::sleep(AGAIN);
                }
            }
        }
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

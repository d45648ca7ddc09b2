//! A guest whose memory still arrives: the target of a post-copy.
//!
//! What has not arrived is a hole in the guest's memory. Who touches it waits; the front
//! end is told over the userfaultfd that it got from here, fetches the page, and wakes him.
//! That takes as long as the network does, or for ever. So that nobody else waits along:
//!
//! - The disk's queues have a worker of their own.
//! - It touches every page before it gives out a pointer ([`super::memory`]): nothing
//!   waits within the kernel, in a lane, or holding a lock.
//! - When the front end is gone or cut off, nobody brings the page any more. Then the
//!   worker is woken with an empty page of its own in the place of the hole, and told so:
//!   what it reads is thrown away, the request is neither carried out nor answered.
//!
//! The hole itself is never filled from here: the guest may live on.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

const PAGE: usize = Arriving::PAGE;
const STACK: usize = 64 << 10;

const API: u64 = 0xaa;
const MISSING: u64 = 1;
// The kernel's `_IOWR(0xaa, 0x3f, uffdio_api)` and so on.
const UFFDIO_API: libc::Ioctl = 0xc018_aa3f_u32 as libc::Ioctl;
const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00_u32 as libc::Ioctl;
const UFFDIO_WAKE: libc::Ioctl = 0x8010_aa02_u32 as libc::Ioctl;

/// `touching` has this bit while the page is being replaced.
const HELD: usize = 1;

/// See the module. One worker touches its pages.
pub struct Arriving {
    uffd: OwnedFd,
    /// The page that the worker waits for; 0: none.
    touching: AtomicUsize,
    abandoned: AtomicBool,
    over: EventFd,
}

/// Whether this kernel lets this process do it.
pub fn possible() -> bool {
    Arriving::new().is_ok()
}

impl Arriving {
    /// Larger ones are refused: a part of one cannot be replaced.
    pub const PAGE: usize = 4096;

    pub fn new() -> io::Result<Arc<Arriving>> {
        // Faults of the kernel on behalf of this process count as well.
        // SAFETY: takes a number and gives out a descriptor.
        let fd =
            unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let uffd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
        let mut api = [API, 0, 0];
        // SAFETY: `api` is laid out as the kernel's `uffdio_api`.
        check(unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_API, &raw mut api) })?;
        Ok(Arc::new(Arriving {
            uffd,
            touching: AtomicUsize::new(0),
            abandoned: AtomicBool::new(false),
            over: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        }))
    }

    /// For the front end, which is told there what is missed.
    pub fn descriptor(&self) -> io::Result<File> {
        self.uffd.try_clone().map(File::from)
    }

    /// From now on, whoever touches a hole in this mapping waits.
    pub fn register(&self, start: *mut u8, len: usize) -> io::Result<()> {
        // A huge page would be filled with zeros around what has arrived.
        // SAFETY: advice on a mapping of the caller's; it changes no contents.
        unsafe { libc::madvise(start.cast(), len, libc::MADV_NOHUGEPAGE) };
        let mut range = [start.addr() as u64, len as u64, MISSING, 0];
        // SAFETY: `range` is laid out as the kernel's `uffdio_register`.
        check(unsafe { libc::ioctl(self.uffd.as_raw_fd(), UFFDIO_REGISTER, &raw mut range) })
    }

    /// Waits until all of it is there; false if that will not be.
    ///
    /// The caller keeps the mapping meanwhile.
    pub fn touch(&self, start: *const u8, len: u64) -> bool {
        if len == 0 {
            return !self.abandoned.load(Ordering::SeqCst);
        }
        let first = start.map_addr(|a| a & !(PAGE - 1));
        let pages = (start.addr() - first.addr() + len as usize).div_ceil(PAGE);
        (0..pages).all(|n| self.touch_page(first.wrapping_add(n * PAGE)))
    }

    fn touch_page(&self, page: *const u8) -> bool {
        let address = page.expose_provenance();
        self.touching.store(address, Ordering::SeqCst);
        let there = !self.abandoned.load(Ordering::SeqCst) && {
            // SAFETY: the page is within the caller's mapping.
            unsafe { page.read_volatile() };
            !self.abandoned.load(Ordering::SeqCst)
        };
        // Not while it is being replaced: the mapping may go afterwards.
        while self
            .touching
            .compare_exchange(address, 0, Ordering::SeqCst, Ordering::SeqCst)
            .is_err()
        {
            std::thread::yield_now();
        }
        there
    }

    /// Nobody brings what is missing: whoever waits is let go, and none waits any more.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::SeqCst);
        let page = self.touching.load(Ordering::SeqCst);
        let hold = |page| {
            let order = Ordering::SeqCst;
            self.touching.compare_exchange(page, page | HELD, order, order).is_ok()
        };
        if page == 0 || page & HELD != 0 || !hold(page) {
            // Whoever touches one from now on looks first, and again afterwards.
            return;
        }
        let mut there = 0u8;
        let at = std::ptr::with_exposed_provenance_mut::<libc::c_void>(page);
        // SAFETY: the page is mapped until it is not held any more; `there` is one byte.
        let known = unsafe { libc::mincore(at, PAGE, &raw mut there) } == 0;
        // What is there may be in use by requests of before. What is not, is not.
        if known && there & 1 == 0 {
            let (access, kind) = (
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            );
            // SAFETY: replaces a page of a mapping that lives until it is not held any more,
            // and is of shared memory in pages of this size; its one reader throws away what
            // it reads.
            let replaced = unsafe { libc::mmap(at, PAGE, access, kind, -1, 0) };
            if replaced == libc::MAP_FAILED {
                tracing::error!(why = %io::Error::last_os_error(), "a page cannot be replaced");
            }
        }
        let mut range = [page as u64, PAGE as u64];
        // SAFETY: `range` is laid out as the kernel's `uffdio_range`.
        unsafe { libc::ioctl(self.uffd.as_raw_fd(), UFFDIO_WAKE, &raw mut range) };
        self.touching.store(page, Ordering::SeqCst);
    }

    /// All is there.
    pub fn end(&self) {
        let _ = self.over.write(1);
    }

    /// Abandons it when the connection ends, whoever ends it and whatever its own thread
    /// is waiting for.
    pub fn guard(self: &Arc<Arriving>, connection: UnixStream) -> io::Result<()> {
        let this = Arc::clone(self);
        let guard = move || {
            // SAFETY: the descriptor is open as long as `this`.
            let over = unsafe { std::os::fd::BorrowedFd::borrow_raw(this.over.as_raw_fd()) };
            loop {
                let mut fds = [
                    PollFd::new(std::os::fd::AsFd::as_fd(&connection), PollFlags::empty()),
                    PollFd::new(over, PollFlags::POLLIN),
                ];
                let ready = poll(&mut fds, PollTimeout::NONE);
                if ready == Err(nix::errno::Errno::EINTR) {
                    continue;
                }
                if fds[1].revents().is_none_or(|r| r.is_empty()) {
                    this.abandon();
                }
                return;
            }
        };
        std::thread::Builder::new().name("arriving".into()).stack_size(STACK).spawn(guard)?;
        Ok(())
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether this process handles page faults by itself: a QEMU to which memory arrives.
pub fn handles_faults(pid: u32) -> io::Result<bool> {
    for fd in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        match std::fs::read_link(fd?.path()) {
            Ok(link) if link.as_os_str() == "anon_inode:[userfaultfd]" => return Ok(true),
            // Closed meanwhile.
            _ => {}
        }
    }
    Ok(false)
}

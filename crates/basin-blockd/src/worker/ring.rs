//! A worker's io_uring: submission entries with their meaning in `user_data`.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use io_uring::types::{Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue, types};

const ENTRIES: u32 = 128;
const COMPLETIONS: u32 = 512;
/// Files that a worker's queues can have registered; more are used unregistered.
const FILES: u32 = 1024;

/// What a completion belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    Slot(u32),
    /// A queue and its incarnation.
    Kick(u32, u32),
    Inbox,
    Ignore,
}

impl Tag {
    fn encode(self) -> u64 {
        match self {
            Tag::Slot(n) => u64::from(n),
            Tag::Kick(queue, life) => {
                1 << 62 | u64::from(life & 0x3fff_ffff) << 32 | u64::from(queue)
            }
            Tag::Inbox => 2 << 62,
            Tag::Ignore => 3 << 62,
        }
    }

    fn decode(n: u64) -> Tag {
        match n >> 62 {
            0 => Tag::Slot(n as u32),
            1 => Tag::Kick(n as u32, (n >> 32) as u32 & 0x3fff_ffff),
            2 => Tag::Inbox,
            _ => Tag::Ignore,
        }
    }
}

/// An open file as the ring knows it.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    Registered(u32),
    Plain(RawFd),
}

/// What happened.
#[derive(Debug, Clone, Copy)]
pub struct Completion {
    pub tag: Tag,
    pub result: i32,
    /// A poll that stays armed.
    pub more: bool,
}

pub struct Ring {
    uring: IoUring,
    free_files: Vec<u32>,
}

macro_rules! on {
    ($target:expr, |$fd:ident| $entry:expr) => {
        match $target {
            Target::Registered(n) => {
                let $fd = Fixed(n);
                $entry.build()
            }
            Target::Plain(raw) => {
                let $fd = Fd(raw);
                $entry.build()
            }
        }
    };
}

impl Ring {
    /// Made by the thread that uses it, and used by no other.
    pub fn new() -> io::Result<Ring> {
        let uring = IoUring::builder()
            .setup_cqsize(COMPLETIONS)
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .dontfork()
            .build(ENTRIES)?;
        let free_files = match uring.submitter().register_files_sparse(FILES) {
            Ok(()) => (0..FILES).rev().collect(),
            Err(_) => Vec::new(),
        };
        Ok(Ring { uring, free_files })
    }

    /// Makes a file known to the ring, which saves looking it up at each request.
    pub fn register(&mut self, fd: RawFd) -> Target {
        let Some(n) = self.free_files.pop() else { return Target::Plain(fd) };
        match self.uring.submitter().register_files_update(n, &[fd]) {
            Ok(_) => Target::Registered(n),
            Err(_) => {
                self.free_files.push(n);
                Target::Plain(fd)
            }
        }
    }

    pub fn unregister(&mut self, target: Target) {
        if let Target::Registered(n) = target
            && self.uring.submitter().register_files_update(n, &[-1]).is_ok()
        {
            self.free_files.push(n);
        }
    }

    fn push(&mut self, entry: squeue::Entry, tag: Tag) {
        let entry = entry.user_data(tag.encode());
        loop {
            // SAFETY: what an entry points at outlives the request: slots keep
            // buffers and the guest's mapping until their completion is seen, and
            // lists of buffers are read by the kernel before `submit` returns.
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                return;
            }
            self.submit();
        }
    }

    pub fn read(&mut self, to: Target, iov: &[libc::iovec], offset: u64, tag: Tag) {
        let entry = match iov {
            [one] => on!(to, |fd| opcode::Read::new(fd, one.iov_base.cast(), clamp(one.iov_len))
                .offset(offset)),
            _ => {
                on!(to, |fd| opcode::Readv::new(fd, iov.as_ptr(), iov.len() as u32).offset(offset))
            }
        };
        self.push(entry, tag);
    }

    pub fn write(&mut self, to: Target, iov: &[libc::iovec], offset: u64, sync: bool, tag: Tag) {
        let flags = if sync { libc::RWF_DSYNC } else { 0 };
        let entry = match iov {
            [one] => {
                on!(to, |fd| opcode::Write::new(fd, one.iov_base.cast(), clamp(one.iov_len))
                    .offset(offset)
                    .rw_flags(flags))
            }
            _ => on!(to, |fd| opcode::Writev::new(fd, iov.as_ptr(), iov.len() as u32)
                .offset(offset)
                .rw_flags(flags)),
        };
        self.push(entry, tag);
    }

    pub fn fdatasync(&mut self, to: Target, tag: Tag) {
        let entry = on!(to, |fd| opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC));
        self.push(entry, tag);
    }

    pub fn fallocate(&mut self, to: Target, mode: i32, offset: u64, len: u64, tag: Tag) {
        let entry = on!(to, |fd| opcode::Fallocate::new(fd, len).offset(offset).mode(mode));
        self.push(entry, tag);
    }

    /// Reports each signal of an eventfd until [`Ring::forget`]; it need not be read.
    pub fn watch(&mut self, fd: RawFd, tag: Tag) {
        let entry = opcode::PollAdd::new(Fd(fd), libc::POLLIN as u32).multi(true).build();
        self.push(entry, tag);
    }

    pub fn forget(&mut self, tag: Tag) {
        let entry = opcode::PollRemove::new(tag.encode()).build();
        self.push(entry, Tag::Ignore);
    }

    /// Signals an eventfd with the next submission. By the ring and not by
    /// `write`: the front end could make its descriptor block, and this cannot.
    pub fn signal(&mut self, fd: RawFd) {
        static ONE: u64 = 1;
        let entry = opcode::Write::new(Fd(fd), (&raw const ONE).cast(), 8)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS);
        self.push(entry, Tag::Ignore);
    }

    /// Hands everything pushed to the kernel.
    pub fn submit(&mut self) {
        while !self.uring.submission().is_empty() {
            match self.uring.submit() {
                Ok(_) => {}
                Err(e) if matches!(e.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN)) => {
                    // Completions must be made room for; the kernel keeps what overflows.
                    std::thread::yield_now();
                    self.run_deferred();
                }
                Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
                Err(e) => {
                    tracing::error!(error = %e, "io_uring refuses submissions");
                    return;
                }
            }
        }
    }

    /// Hands over and sleeps until something completes, `limit` at most.
    pub fn submit_and_wait(&mut self, limit: Option<Duration>) {
        let result = match limit {
            None => self.uring.submit_and_wait(1),
            Some(limit) => {
                let ts = Timespec::from(limit);
                self.uring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&ts))
            }
        };
        if let Err(e) = result
            && !matches!(
                e.raw_os_error(),
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)
            )
        {
            tracing::error!(error = %e, "io_uring cannot wait");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Is there a completion, or work of the kernel that would make one?
    pub fn is_ready(&mut self) -> bool {
        if !self.uring.completion().is_empty() {
            return true;
        }
        if self.uring.submission().taskrun() {
            self.run_deferred();
            return !self.uring.completion().is_empty();
        }
        false
    }

    fn run_deferred(&mut self) {
        const GETEVENTS: u32 = 1;
        fence(Ordering::SeqCst);
        // SAFETY: submits nothing, waits for nothing and passes no argument.
        let _ = unsafe { self.uring.submitter().enter::<libc::sigset_t>(0, 0, GETEVENTS, None) };
    }

    /// Moves what completed into `out`.
    pub fn reap(&mut self, out: &mut Vec<Completion>) {
        out.extend(self.uring.completion().map(|c| Completion {
            tag: Tag::decode(c.user_data()),
            result: c.result(),
            more: cqueue::more(c.flags()),
        }));
    }
}

/// The kernel moves less than 2 GiB at once anyway; the rest follows.
fn clamp(len: usize) -> u32 {
    len.min(1 << 30) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_round_trip() {
        for tag in
            [Tag::Slot(0), Tag::Slot(u32::MAX), Tag::Kick(7, 0x3fff_ffff), Tag::Inbox, Tag::Ignore]
        {
            assert_eq!(Tag::decode(tag.encode()), tag);
        }
    }
}

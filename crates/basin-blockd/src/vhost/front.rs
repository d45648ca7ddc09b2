//! The socket of a disk and the thread that listens to its front end.
//!
//! One front end at a time: a second one waits until the first is gone. When a
//! connection ends, its queues are stopped and drained before the next begins.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vhost::vhost_user::{BackendReqHandler, Error, VhostUserBackendReqHandlerMut};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::device::Handler;
use super::peer::{Peer, peer};
use crate::disk::Disk;
use crate::worker::Pool;

/// The library needs a few KiB for a message.
const STACK: usize = 128 << 10;

/// `VHOST_USER_SET_BACKEND_REQ_FD`: the library takes the channel but cannot send
/// the one message that matters to a disk, so it is handled here.
const SET_BACKEND_REQ_FD: u32 = 21;
/// It goes to all disks of a guest whose memory has come, also to those that were not told
/// that it would.
const POSTCOPY_END: u32 = 30;
/// QEMU acknowledges with the code of what it sent before, and may have sent nothing.
const NOTHING: u32 = 0;
const CONFIG_CHANGED: u32 = 2;
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

struct Shared {
    disk: Arc<Disk>,
    pool: Arc<Pool>,
    uid: u32,
    stop: EventFd,
    stopping: AtomicBool,
    connected: AtomicBool,
    connection: Mutex<Option<UnixStream>>,
    /// Where the front end listens to the back end.
    channel: Mutex<Option<UnixStream>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A listening disk.
pub struct FrontEnd {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
}

impl FrontEnd {
    pub fn listen(path: &Path, uid: u32, disk: Arc<Disk>, pool: Arc<Pool>) -> io::Result<FrontEnd> {
        let listener = bind(path, uid)?;
        let shared = Arc::new(Shared {
            disk,
            pool,
            uid,
            stop: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            stopping: AtomicBool::new(false),
            connected: AtomicBool::new(false),
            connection: Mutex::default(),
            channel: Mutex::default(),
        });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("front".into())
            .stack_size(STACK)
            .spawn(move || theirs.listen(&listener))?;
        Ok(FrontEnd { shared, thread: Some(thread), path: path.to_owned() })
    }

    pub fn connected(&self) -> bool {
        self.shared.connected.load(Ordering::Acquire)
    }

    /// Tells the guest to read the configuration space again.
    pub fn config_changed(&self) {
        let Some(channel) = &*lock(&self.shared.channel) else { return };
        let mut message = Vec::with_capacity(12);
        for word in [CONFIG_CHANGED, VERSION, 0] {
            message.extend(word.to_ne_bytes());
        }
        // SAFETY: sends a local buffer of the length given.
        unsafe {
            libc::send(
                channel.as_raw_fd(),
                message.as_ptr().cast(),
                message.len(),
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        };
    }

    /// Cuts the front end off; returns when nothing of it is in flight.
    pub fn close(mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        let _ = self.shared.stop.write(1);
        if let Some(connection) = &*lock(&self.shared.connection) {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Binds under another name and renames, so that the socket appears with its
/// owner and mode, and takes the place of a dead one.
fn bind(path: &Path, uid: u32) -> io::Result<UnixListener> {
    let mut name = path.as_os_str().to_owned();
    name.push("~");
    let temporary = PathBuf::from(name);
    let _ = std::fs::remove_file(&temporary);
    let listener = UnixListener::bind(&temporary)?;
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o600))?;
    std::os::unix::fs::chown(&temporary, Some(uid), None)?;
    listener.set_nonblocking(true)?;
    std::fs::rename(&temporary, path)?;
    Ok(listener)
}

impl Shared {
    /// Waits until `other` is readable; false: it is time to stop.
    fn wait(&self, other: &impl AsFd) -> bool {
        loop {
            if self.stopping.load(Ordering::Acquire) {
                return false;
            }
            // SAFETY: the descriptor is open as long as `self`.
            let stop = unsafe { std::os::fd::BorrowedFd::borrow_raw(self.stop.as_raw_fd()) };
            let mut fds = [
                PollFd::new(other.as_fd(), PollFlags::POLLIN),
                PollFd::new(stop, PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return false,
            }
            if fds[0].revents().is_some_and(|r| !r.is_empty()) {
                return !self.stopping.load(Ordering::Acquire);
            }
        }
    }

    fn listen(self: Arc<Shared>, listener: &UnixListener) {
        while self.wait(&listener) {
            let Ok((stream, _)) = listener.accept() else { continue };
            if let Err(why) = self.admit(stream) {
                tracing::warn!(volume = %self.disk.volume, %why, "front end cut off");
            }
        }
    }

    fn admit(self: &Arc<Shared>, stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        let (process, user) = peer(&stream)?;
        if user != 0 && user != self.uid {
            return Err(io::Error::other(format!("user {user} may not use this disk")));
        }
        *lock(&self.connection) = Some(stream.try_clone()?);
        self.connected.store(true, Ordering::Release);
        tracing::info!(volume = %self.disk.volume, "front end connected");
        let peer = Peer { trusted: user == 0, process, arriving: OnceLock::new() };
        let peer = Arc::new(peer);
        let handler =
            Handler::new(Arc::clone(&self.disk), Arc::clone(&self.pool), Arc::clone(&peer));
        let outcome = self.talk(&stream, &handler, &peer);
        if let Some(arriving) = peer.arriving.get() {
            arriving.give_up();
        }
        lock(&handler).stop();
        let activating = lock(&handler).take_activating();
        if let Some(activating) = activating {
            let _ = activating.join();
        }
        self.disk.settle();
        *lock(&self.channel) = None;
        *lock(&self.connection) = None;
        self.connected.store(false, Ordering::Release);
        tracing::info!(volume = %self.disk.volume, "front end gone");
        outcome
    }

    fn talk(
        &self,
        stream: &UnixStream,
        handler: &Arc<Mutex<Handler>>,
        peer: &Peer,
    ) -> io::Result<()> {
        let requests = stream.try_clone()?;
        let mut requests = BackendReqHandler::from_stream(requests, Arc::clone(handler));
        while self.wait(stream) {
            let Some(header) = peek_header(stream)? else { return Ok(()) };
            match header.request {
                SET_BACKEND_REQ_FD => self.take_channel(stream)?,
                POSTCOPY_END if peer.arriving.get().is_none() => {
                    take_message(stream, &header)?;
                    peer.process.note_whole();
                    answer(stream, &header)?;
                }
                NOTHING if header.size == 8 && peer.arriving.get().is_some() => {
                    take_message(stream, &header)?;
                    let taken = lock(handler).postcopy_ack_mem_regions();
                    taken.map_err(|e| io::Error::other(e.to_string()))?;
                }
                _ => match requests.handle_request() {
                    // After the answer: the front end need not wait until the data of
                    // a device that it has stopped are durable.
                    Ok(()) => self.disk.settle(),
                    Err(Error::Disconnected | Error::PartialMessage) => return Ok(()),
                    Err(_) if self.stopping.load(Ordering::Acquire) => return Ok(()),
                    Err(e) => return Err(io::Error::other(e.to_string())),
                },
            }
        }
        Ok(())
    }

    fn take_channel(&self, stream: &UnixStream) -> io::Result<()> {
        let mut bytes = [0; Header::LEN];
        let (n, file) =
            stream.recv_with_fd(&mut bytes).map_err(|e| io::Error::from_raw_os_error(e.errno()))?;
        let header = Header::from_bytes(&bytes);
        let Some(file) = file.filter(|_| n == bytes.len() && header.size == 0) else {
            return Err(io::Error::other("a bad message for the back end's channel"));
        };
        *lock(&self.channel) = Some(UnixStream::from(std::os::fd::OwnedFd::from(file)));
        answer(stream, &header)
    }
}

/// What every message begins with.
struct Header {
    request: u32,
    flags: u32,
    size: u32,
}

impl Header {
    const LEN: usize = 12;

    fn from_bytes(bytes: &[u8; Header::LEN]) -> Header {
        let [r0, r1, r2, r3, f0, f1, f2, f3, s0, s1, s2, s3] = *bytes;
        let word = u32::from_ne_bytes;
        Header {
            request: word([r0, r1, r2, r3]),
            flags: word([f0, f1, f2, f3]),
            size: word([s0, s1, s2, s3]),
        }
    }
}

/// Takes a message that is not for the library.
fn take_message(mut stream: &UnixStream, header: &Header) -> io::Result<()> {
    let mut bytes = [0; Header::LEN + 8];
    match bytes.get_mut(..Header::LEN + header.size as usize) {
        Some(bytes) => stream.read_exact(bytes),
        None => Err(io::Error::other("a message that is too long")),
    }
}

/// It is done, for a front end that wants to know.
fn answer(mut stream: &UnixStream, header: &Header) -> io::Result<()> {
    if header.flags & NEED_REPLY == 0 {
        return Ok(());
    }
    let mut reply = Vec::with_capacity(Header::LEN + 8);
    for word in [header.request, VERSION | REPLY, 8, 0, 0] {
        reply.extend(word.to_ne_bytes());
    }
    stream.write_all(&reply)
}

/// The beginning of the next message, which stays in the socket; `None` at its end.
fn peek_header(stream: &UnixStream) -> io::Result<Option<Header>> {
    let mut bytes = [0u8; Header::LEN];
    // SAFETY: reads into a local buffer of the length given.
    let n = unsafe {
        libc::recv(
            stream.as_raw_fd(),
            bytes.as_mut_ptr().cast(),
            bytes.len(),
            libc::MSG_PEEK | libc::MSG_WAITALL,
        )
    };
    match usize::try_from(n) {
        Ok(Header::LEN) => Ok(Some(Header::from_bytes(&bytes))),
        Ok(_) => Ok(None),
        Err(_) => match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ECONNRESET) => Ok(None),
            e => Err(e),
        },
    }
}

//! Listens to a guest's heartbeats. Arrival is when the kernel got them: how soon this
//! process is scheduled on a busy machine does not matter.

use std::io::IoSliceMut;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::socket::sockopt::{RcvBuf, ReceiveTimestampns};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt};

use super::beats::{Beat, Report, report};
use crate::server::lock;
use crate::wait::{BOOT, eventually};

const LOOK: Duration = Duration::from_millis(50);

/// Listens until it is dropped.
#[derive(Debug)]
pub struct Collector {
    pub address: SocketAddr,
    beats: Arc<Mutex<Vec<Beat>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    /// In the network of the calling thread: see `Server::in_network`, `Fabric::enter`.
    /// Port 0 is any that is free.
    #[track_caller]
    pub fn bind(address: impl Into<SocketAddr>) -> Collector {
        let address = address.into();
        let socket = UdpSocket::bind(address).unwrap_or_else(|e| panic!("{address}: {e}"));
        setsockopt(&socket, ReceiveTimestampns, &true).expect("ask for the time of arrival");
        setsockopt(&socket, RcvBuf, &(4 << 20)).expect("ask for a large buffer");
        socket.set_read_timeout(Some(LOOK)).expect("set a timeout");
        let address = socket.local_addr().expect("an address");
        let (beats, stop) = <(Arc<Mutex<Vec<Beat>>>, Arc<AtomicBool>)>::default();
        let (heard, told) = (beats.clone(), stop.clone());
        let listen = move || {
            while !told.load(Ordering::Relaxed) {
                if let Some(beat) = receive(&socket) {
                    lock(&heard).push(beat);
                }
            }
        };
        Collector { address, beats, stop, thread: Some(std::thread::spawn(listen)) }
    }

    /// All that arrived since it was told to forget.
    pub fn beats(&self) -> Vec<Beat> {
        lock(&self.beats).clone()
    }

    /// What they tell.
    pub fn report(&self) -> Report {
        report(&lock(&self.beats))
    }

    /// Forgets all but the last one, at which the next silence may begin.
    pub fn forget(&self) {
        let mut beats = lock(&self.beats);
        let all_but_one = beats.len().saturating_sub(1);
        beats.drain(..all_but_one);
    }

    /// Waits until so many more have arrived.
    #[track_caller]
    pub fn wait_more(&self, count: usize) {
        let before = lock(&self.beats).len();
        eventually(&format!("{count} heartbeats arrive at {}", self.address), BOOT, || {
            (lock(&self.beats).len() >= before + count).then_some(())
        });
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn receive(socket: &UdpSocket) -> Option<Beat> {
    let mut buffer = [0; 256];
    let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let got = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::empty(),
    );
    let got = got.ok()?;
    let time = got.cmsgs().ok()?.find_map(|message| match message {
        ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
        _ => None,
    });
    let (time, length) = (time.unwrap_or_else(now), got.bytes);
    Beat::parse(std::str::from_utf8(&buffer[..length]).ok()?, time)
}

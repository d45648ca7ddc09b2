//! Listens to a guest's ticks outside of all servers. A guest cannot see for itself how
//! long it stood still: its clock stood still too.

use std::io::IoSliceMut;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use nix::sys::socket::sockopt::{RcvBuf, ReceiveTimestampns};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt};

use super::fabric::{Fabric, OUTSIDE};
use super::told::{Tick, Told, tell};

const PORT: u16 = 4000;
const COMES_WITHIN: Duration = Duration::from_secs(180);

/// Listens until it is dropped.
pub struct Ticks {
    heard: Arc<Mutex<Vec<Tick>>>,
}

impl Ticks {
    pub fn listen(fabric: &Fabric) -> Result<Ticks> {
        let socket = fabric.enter(|| Ok(UdpSocket::bind(address())?))?;
        // By the kernel's clock: how soon this process gets to it does not matter.
        setsockopt(&socket, ReceiveTimestampns, &true)?;
        setsockopt(&socket, RcvBuf, &(4 << 20))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let heard = Arc::<Mutex<Vec<Tick>>>::default();
        let ticks = Ticks { heard: heard.clone() };
        std::thread::spawn(move || {
            while Arc::strong_count(&heard) > 1 {
                if let Some(tick) = receive(&socket) {
                    heard.lock().unwrap_or_else(PoisonError::into_inner).push(tick);
                }
            }
        });
        Ok(ticks)
    }

    /// Where all that comes from now on begins.
    pub fn mark(&self) -> usize {
        self.all().len().saturating_sub(1)
    }

    /// Waits for so many more.
    pub fn wait(&self, more: usize) -> Result<()> {
        let (before, begin) = (self.all().len(), Instant::now());
        while self.all().len() < before + more {
            if begin.elapsed() > COMES_WITHIN {
                bail!("expected ticks of the guest, but there are none");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    pub fn since(&self, mark: usize) -> Result<Told> {
        tell(&self.all()[mark..])
    }

    fn all(&self) -> MutexGuard<'_, Vec<Tick>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the guest sends its ticks.
pub fn address() -> SocketAddr {
    SocketAddr::from((OUTSIDE, PORT))
}

fn receive(socket: &UdpSocket) -> Option<Tick> {
    let mut buffer = [0; 256];
    let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::empty();
    let got = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags);
    let got = got.ok()?;
    let arrived = got.cmsgs().ok()?.find_map(|message| match message {
        ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
        _ => None,
    });
    let length = got.bytes;
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Tick::parse(std::str::from_utf8(&buffer[..length]).ok()?, arrived.unwrap_or_else(now))
}

//! A bridge with two taps, and the ear that hears the guest's heartbeat.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::Any;

pub struct Net {
    bridge: String,
    taps: [String; 2],
    pub host: Ipv4Addr,
    pub guest: Ipv4Addr,
    pub port: u16,
}

fn ip(words: &str) -> Result<(), Any> {
    let status = Command::new("ip").args(words.split(' ')).status()?;
    if status.success() { Ok(()) } else { Err(format!("ip {words}: {status}").into()) }
}

impl Net {
    pub fn new() -> Result<Net, Any> {
        let pid = std::process::id();
        // Two of these at a time do not meet, as a rule.
        let third = (pid % 256) as u8;
        let net = Net {
            bridge: format!("mb{pid}"),
            taps: [format!("mt{pid}a"), format!("mt{pid}b")],
            host: Ipv4Addr::new(10, 213, third, 1),
            guest: Ipv4Addr::new(10, 213, third, 2),
            port: 5005,
        };
        ip(&format!("link add {} type bridge", net.bridge))?;
        ip(&format!("addr add {}/24 dev {}", net.host, net.bridge))?;
        for tap in &net.taps {
            ip(&format!("tuntap add dev {tap} mode tap vnet_hdr"))?;
            ip(&format!("link set {tap} master {} up", net.bridge))?;
        }
        ip(&format!("link set {} up", net.bridge))?;
        Ok(net)
    }

    /// One of the taps, open.
    pub fn tap(&self, n: usize) -> Result<OwnedFd, Any> {
        let file = std::fs::File::options().read(true).write(true).open("/dev/net/tun")?;
        let mut request = [0u8; 40];
        request[..self.taps[n].len()].copy_from_slice(self.taps[n].as_bytes());
        let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as u16;
        request[16..18].copy_from_slice(&flags.to_ne_bytes());
        // SAFETY: an ifreq is 40 bytes, and the buffer outlives the call.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
        if done < 0 { Err(io::Error::last_os_error().into()) } else { Ok(file.into()) }
    }

    pub fn listen(&self) -> Result<Heart, Any> {
        let socket = UdpSocket::bind(SocketAddr::from((self.host, self.port)))?;
        let (sender, beats) = channel();
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let ear = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            loop {
                let beat = socket.recv_from(&mut buffer).is_ok().then(Instant::now);
                // An ear without a listener ends.
                if sender.send(beat).is_err() {
                    return;
                }
            }
        });
        Ok(Heart { beats: Some(beats), ear: Some(ear) })
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for link in self.taps.iter().chain([&self.bridge]) {
            let _ = ip(&format!("link del {link}"));
        }
    }
}

/// When beats came.
pub struct Heart {
    beats: Option<Receiver<Option<Instant>>>,
    ear: Option<JoinHandle<()>>,
}

impl Drop for Heart {
    fn drop(&mut self) {
        // The ear ends with who listens to it, and gives its port back.
        self.beats = None;
        let _ = self.ear.take().map(JoinHandle::join);
    }
}

impl Heart {
    fn beats(&self) -> Result<&Receiver<Option<Instant>>, Any> {
        self.beats.as_ref().ok_or_else(|| "the ear is gone".into())
    }

    /// Waits until the guest beats, and its load has begun.
    pub fn settled(&self) -> Result<(), Any> {
        let limit = Instant::now() + Duration::from_secs(120);
        while self.beats()?.recv()?.is_none() {
            if Instant::now() > limit {
                return Err("the guest has no heartbeat".into());
            }
        }
        std::thread::sleep(Duration::from_secs(3));
        while self.beats()?.try_recv().is_ok() {}
        Ok(())
    }

    /// The longest silence since then, once the guest beats again.
    pub fn gap_after_beats(&self) -> Result<Duration, Any> {
        let enough = Instant::now() + Duration::from_millis(700);
        let mut last: Option<Instant> = None;
        let mut gap = Duration::ZERO;
        let mut after = 0;
        while after < 20 {
            if Instant::now() > enough + Duration::from_secs(60) {
                return Err("the guest's heart stopped".into());
            }
            let Some(beat) = self.beats()?.recv()? else { continue };
            gap = gap.max(last.map_or(Duration::ZERO, |last| beat - last));
            last = Some(beat);
            if beat > enough {
                after += 1;
            }
        }
        Ok(gap)
    }
}

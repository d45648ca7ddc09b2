//! A cable that is slow, lossy or both, for kernels without `netem`: a thread takes the
//! frames from the cable's end and hands them to the bridge, and back, after some time.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::fabric::Cable;
use crate::place::{inside, ip};
use crate::raw;
use crate::wait::{BOOT, eventually};

/// How bad a cable is, each way.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Slow {
    /// Each frame arrives so much later.
    pub delay: Duration,
    /// Of a hundred frames so many do not arrive.
    pub loss_percent: u8,
    /// No more than so many bits pass in a second.
    pub bits_per_second: Option<u64>,
}

/// What has passed and what has not waits no longer than this to be told to stop.
const LOOK: Duration = Duration::from_millis(50);
/// More than this waiting is a full queue: frames are dropped, as a router does.
const QUEUE_BYTES: usize = 32 << 20;
/// A frame of the largest size, with the kernel's header.
const FRAME: usize = 66 << 10;

/// A cable that is slow until this is dropped.
#[derive(Debug)]
pub(crate) struct Relay {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Relay {
    pub(crate) fn start(cable: &Cable, slow: Slow) -> Relay {
        let port = cable.port();
        let bridge_end = format!("{port}-slow");
        cable.detach();
        let (tap, frames) = inside(cable.netns(), || {
            // A program that somebody starts just now holds the last one, until it runs.
            let tap = eventually("the cable is free", BOOT, || match raw::tap(&bridge_end) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => None,
                other => Some(other.expect("make a tap")),
            });
            (File::from(tap), raw::frames(&port).expect("listen at the cable"))
        });
        ip(&["-n", cable.netns(), "link", "set", &bridge_end, "addrgenmode", "none"]);
        cable.attach(&bridge_end);
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let work = move || relay([frames, tap], slow, &told);
        Relay { stop, thread: Some(std::thread::spawn(work)) }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && let Ok(Err(error)) = thread.join()
        {
            eprintln!("a slow cable broke: {error}");
        }
    }
}

/// Frames on their way to one end.
struct Way {
    slow: Slow,
    waiting: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    /// When the last frame will have been put on the wire.
    free_at: Instant,
    seed: u64,
}

fn relay(ends: [File; 2], slow: Slow, stop: &AtomicBool) -> io::Result<()> {
    for end in &ends {
        raw::never_wait(end)?;
    }
    let mut ways = [Way::new(slow, 1), Way::new(slow, 2)];
    let mut buffer = vec![0; FRAME];
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        for (from, to) in [(0, 1), (1, 0)] {
            while let Some(length) = read(&ends[from], &mut buffer)? {
                ways[to].take(&buffer[..length], now);
            }
            while let Some(frame) = ways[to].due(now) {
                // A full device, or an end without a carrier: lost, as on any wire.
                let _ = (&ends[to]).write(&frame);
            }
        }
        let next = ways.iter().filter_map(|way| way.waiting.front()).map(|(due, _)| *due).min();
        let wait = next.map_or(LOOK, |due| due.saturating_duration_since(Instant::now()).min(LOOK));
        let mut fds = ends.each_ref().map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN));
        ppoll(&mut fds, Some(TimeSpec::from_duration(wait)), None)?;
    }
    Ok(())
}

/// None when nothing is there, or the interface is down.
fn read(mut end: &File, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    const GONE: [i32; 2] = [libc::ENETDOWN, libc::ENXIO];
    match end.read(buffer) {
        Ok(length) => Ok(Some(length)),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(e) if e.raw_os_error().is_some_and(|code| GONE.contains(&code)) => {
            std::thread::sleep(Duration::from_millis(1));
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

impl Way {
    fn new(slow: Slow, seed: u64) -> Way {
        Way { slow, waiting: VecDeque::new(), bytes: 0, free_at: Instant::now(), seed }
    }

    fn take(&mut self, frame: &[u8], now: Instant) {
        if self.loses() || self.bytes + frame.len() > QUEUE_BYTES {
            return;
        }
        let mut sent = now;
        if let Some(rate) = self.slow.bits_per_second {
            let seconds = frame.len() as f64 * 8.0 / rate as f64;
            sent = now.max(self.free_at) + Duration::from_secs_f64(seconds);
            self.free_at = sent;
        }
        self.bytes += frame.len();
        self.waiting.push_back((sent + self.slow.delay, frame.to_vec()));
    }

    fn due(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.waiting.front().is_none_or(|(due, _)| *due > now) {
            return None;
        }
        let (_, frame) = self.waiting.pop_front()?;
        self.bytes -= frame.len();
        Some(frame)
    }

    /// The same frames of the same stream are lost in each run.
    fn loses(&mut self) -> bool {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed >> 16) % 100 < u64::from(self.slow.loss_percent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_wait_for_the_wire_and_for_the_delay() {
        let slow = Slow {
            delay: Duration::from_millis(10),
            bits_per_second: Some(8_000_000),
            ..Slow::default()
        };
        let mut way = Way::new(slow, 1);
        let now = way.free_at;
        way.take(&[1; 1000], now);
        way.take(&[2; 1000], now);
        let at = |ms: u64| now + Duration::from_millis(ms);
        assert_eq!(way.due(at(10)), None);
        assert_eq!(way.due(at(11)), Some(vec![1; 1000]));
        assert_eq!(way.due(at(11)), None);
        assert_eq!(way.due(at(12)), Some(vec![2; 1000]));
        assert_eq!(way.bytes, 0);
    }

    #[test]
    fn as_many_are_lost_as_was_asked_for() {
        let lost = |percent| {
            let slow = Slow { loss_percent: percent, ..Slow::default() };
            let mut way = Way::new(slow, 1);
            (0..10_000).filter(|_| way.loses()).count()
        };
        assert_eq!(lost(0), 0);
        assert_eq!(lost(100), 10_000);
        assert!((2_500..3_500).contains(&lost(30)), "{}", lost(30));
    }
}

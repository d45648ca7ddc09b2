//! A TCP connection to a guest's echo server, over which numbered blocks go there and
//! back without end.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::server::lock;
use crate::wait::BOOT;

const BLOCK: usize = 4096;

/// A transfer under way.
#[derive(Debug)]
pub struct Transfer {
    stream: TcpStream,
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

/// What came back so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transferred {
    pub blocks: u64,
    /// The longest time in which nothing came back.
    pub longest_gap: Duration,
}

#[derive(Debug)]
struct Seen {
    blocks: u64,
    last: Instant,
    longest: Duration,
}

impl Transfer {
    /// From the network of the calling thread. With a pause after each block, or without
    /// any as fast as it goes.
    #[track_caller]
    pub fn start(to: impl Into<SocketAddr>, pause: Duration) -> Transfer {
        let to = to.into();
        let stream = TcpStream::connect_timeout(&to, BOOT);
        let stream = stream.unwrap_or_else(|e| panic!("connect to {to}: {e}"));
        stream.set_nodelay(true).expect("set an option");
        let seen = Seen { blocks: 0, last: Instant::now(), longest: Duration::ZERO };
        let (seen, stop) = (Arc::new(Mutex::new(seen)), Arc::<AtomicBool>::default());
        let clone = || stream.try_clone().expect("share the connection");
        let (writer, reader) = (clone(), clone());
        let (told, noted) = (stop.clone(), seen.clone());
        let threads = vec![
            // First the one whose error is the cause of the other's.
            std::thread::spawn(move || {
                let received = receive(&reader, &noted);
                if received.is_err() {
                    let _ = reader.shutdown(Shutdown::Both);
                }
                received
            }),
            std::thread::spawn(move || send(writer, pause, &told)),
        ];
        Transfer { stream, seen, stop, threads }
    }

    /// So far, a gap that lasts still included.
    pub fn so_far(&self) -> Transferred {
        let seen = lock(&self.seen);
        let longest_gap = seen.longest.max(seen.last.elapsed());
        Transferred { blocks: seen.blocks, longest_gap }
    }

    /// Gaps are counted from now on.
    pub fn forget(&self) {
        lock(&self.seen).longest = Duration::ZERO;
    }

    /// Ends the transfer: each block that was sent has to have come back, unharmed and
    /// in order, on this one connection.
    pub fn finish(mut self) -> io::Result<Transferred> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        let seen = lock(&self.seen);
        Ok(Transferred { blocks: seen.blocks, longest_gap: seen.longest })
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Whoever waits for the peer waits no longer.
        let _ = self.stream.shutdown(Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn send(mut stream: TcpStream, pause: Duration, stop: &AtomicBool) -> io::Result<()> {
    for number in 0u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        stream.write_all(&block(number))?;
        std::thread::sleep(pause);
    }
    stream.shutdown(Shutdown::Write)
}

fn receive(stream: &TcpStream, seen: &Mutex<Seen>) -> io::Result<()> {
    let mut buffer = [0; BLOCK];
    for number in 0u64.. {
        match read_block(stream, &mut buffer, seen)? {
            0 => return Ok(()),
            BLOCK if buffer == block(number) => lock(seen).blocks += 1,
            length => {
                let what = format!("block {number} came back wrong, {length} bytes of it");
                return Err(io::Error::other(what));
            }
        }
    }
    Ok(())
}

/// A whole block, or less at the connection's end. Any byte that arrives ends a gap.
fn read_block(
    mut stream: &TcpStream,
    buffer: &mut [u8; BLOCK],
    seen: &Mutex<Seen>,
) -> io::Result<usize> {
    let mut length = 0;
    while length < BLOCK {
        let more = stream.read(&mut buffer[length..])?;
        if more == 0 {
            break;
        }
        length += more;
        let mut seen = lock(seen);
        let gap = seen.last.elapsed();
        seen.longest = seen.longest.max(gap);
        seen.last = Instant::now();
    }
    Ok(length)
}

fn block(number: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    for (n, word) in (0u64..).zip(block.chunks_exact_mut(8)) {
        word.copy_from_slice(&(number << 16 | n).to_le_bytes());
    }
    block
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn peer(spoil: bool) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 1000];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                buffer[0] ^= u8::from(spoil);
                if stream.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
        });
        address
    }

    #[test]
    fn blocks_come_back() {
        let transfer = Transfer::start(peer(false), Duration::from_millis(1));
        crate::until("blocks come back", || transfer.so_far().blocks > 10);
        assert!(transfer.finish().unwrap().blocks > 10);
    }

    #[test]
    fn a_spoilt_block_is_seen() {
        let transfer = Transfer::start(peer(true), Duration::from_millis(1));
        crate::until("the other end gives up", || transfer.threads[0].is_finished());
        let error = transfer.finish().unwrap_err();
        assert!(error.to_string().contains("block 0 came back wrong"), "{error}");
    }
}

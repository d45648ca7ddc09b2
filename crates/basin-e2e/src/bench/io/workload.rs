//! What the front end does: `blkio` as a driver without a guest.

use std::fs::File;
use std::io::Write;
use std::mem::MaybeUninit;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use blkio::{Blkio, Blkioq, Completion, ReqFlags};

/// A point to measure.
pub struct Case {
    pub name: &'static str,
    write: bool,
    random: bool,
    size: usize,
    depth: usize,
}

const fn case(name: &'static str, write: bool, random: bool, size: usize, depth: usize) -> Case {
    Case { name, write, random, size, depth }
}

pub const CASES: [Case; 6] = [
    case("4k random read, depth 1", false, true, 4096, 1),
    case("4k random read, depth 32", false, true, 4096, 32),
    case("4k random write, depth 1", true, true, 4096, 1),
    case("4k random write, depth 32", true, true, 4096, 32),
    case("128k sequential read, depth 8", false, false, 128 << 10, 8),
    case("128k sequential write, depth 8", true, false, 128 << 10, 8),
];

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub iops: f64,
    /// Of the server, for each request.
    pub cpu_us: f64,
}

/// Makes a file without holes, so that writes allocate nothing.
pub fn fill(path: &Path, len: u64) -> anyhow::Result<()> {
    let mut file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    let mut block = vec![0u8; 1 << 20];
    for _ in 0..len >> 20 {
        for word in block.chunks_exact_mut(8) {
            word.copy_from_slice(&next(&mut x).to_le_bytes());
        }
        file.write_all(&block)?;
    }
    file.sync_all()?;
    Ok(())
}

fn next(x: &mut u64) -> u64 {
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    *x
}

/// A connected front end with a case to run.
pub struct Workload<'a> {
    case: &'a Case,
    queue: Blkioq,
    /// Keeps the connection.
    _disk: Blkio,
    buffer: usize,
    blocks: u64,
    seed: u64,
    position: u64,
}

impl Workload<'_> {
    pub fn connect<'a>(
        socket: &Path,
        case: &'a Case,
        poll: bool,
        seed: u64,
    ) -> anyhow::Result<Workload<'a>> {
        let say = |what: &'static str| move |e: blkio::Error| anyhow!("{what}: {}", e.message());
        let mut disk = Blkio::new("virtio-blk-vhost-user").map_err(say("blkio"))?;
        let path = socket.to_str().context("a strange path")?;
        disk.set_str("path", path).map_err(say("path"))?;
        disk.connect().map_err(say("connect"))?;
        let (queues, polling) = if poll { (0, 1) } else { (1, 0) };
        disk.set_i32("num-queues", queues).map_err(say("queues"))?;
        disk.set_i32("num-poll-queues", polling).map_err(say("queues"))?;
        let capacity = disk.get_u64("capacity").map_err(say("capacity"))?;
        let mut started = disk.start().map_err(say("start"))?;
        let region = disk.alloc_mem_region(case.size * case.depth).map_err(say("memory"))?;
        disk.map_mem_region(&region).map_err(say("memory"))?;
        let queue = started.queues.pop().or_else(|| started.poll_queues.pop());
        Ok(Workload {
            case,
            queue: queue.context("no queue")?,
            _disk: disk,
            buffer: region.addr,
            blocks: capacity / case.size as u64,
            seed: (seed + 1).wrapping_mul(0x2545_f491_4f6c_dd1d),
            position: 0,
        })
    }

    fn submit(&mut self, slot: usize) {
        let block = if self.case.random { next(&mut self.seed) } else { self.position };
        self.position += 1;
        let start = block % self.blocks * self.case.size as u64;
        let buffer = (self.buffer + slot * self.case.size) as *mut u8;
        let (size, none) = (self.case.size, ReqFlags::empty());
        if self.case.write {
            self.queue.write(start, buffer, size, slot, none);
        } else {
            self.queue.read(start, buffer, size, slot, none);
        }
    }

    /// Keeps `depth` requests under way for that long; how many ended, and in what time.
    pub fn run(&mut self, time: Duration) -> anyhow::Result<(u64, Duration)> {
        let begin = Instant::now();
        let mut count = 0;
        let mut done: Vec<MaybeUninit<Completion>> =
            (0..self.case.depth).map(|_| MaybeUninit::uninit()).collect();
        (0..self.case.depth).for_each(|slot| self.submit(slot));
        let mut open = self.case.depth;
        while open > 0 {
            let n = self
                .queue
                .do_io(&mut done, 1, None, None)
                .map_err(|e| anyhow!("I/O: {}", e.message()))?;
            let more = begin.elapsed() < time;
            for completion in &done[..n] {
                // SAFETY: do_io filled the first `n`.
                let completion = unsafe { completion.assume_init_ref() };
                if completion.ret != 0 {
                    bail!("a request failed with {}", completion.ret);
                }
                count += 1;
                open -= 1;
                if more {
                    self.submit(completion.user_data);
                    open += 1;
                }
            }
        }
        Ok((count, begin.elapsed()))
    }
}

//! Counters of a disk, raised by every worker that serves a queue of it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use basin_model::Bytes;

use crate::control::Stats;
use crate::request::Op;

#[derive(Default)]
pub struct Counters {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    write_bytes: AtomicU64,
    flushes: AtomicU64,
    discards: AtomicU64,
    errors: AtomicU64,
}

impl Counters {
    /// A request was carried out.
    pub fn done(&self, op: Op, bytes: u64) {
        match op {
            Op::Read => {
                self.reads.fetch_add(1, Relaxed);
                self.read_bytes.fetch_add(bytes, Relaxed);
            }
            Op::Write | Op::WriteZeroes => {
                self.writes.fetch_add(1, Relaxed);
                self.write_bytes.fetch_add(bytes, Relaxed);
            }
            Op::Flush => {
                self.flushes.fetch_add(1, Relaxed);
            }
            Op::Discard => {
                self.discards.fetch_add(1, Relaxed);
            }
            Op::GetId => {}
        }
    }

    /// A request failed or was refused.
    pub fn failed(&self) -> u64 {
        self.errors.fetch_add(1, Relaxed) + 1
    }

    pub fn snapshot(&self) -> Stats {
        let get = |cell: &AtomicU64| cell.load(Relaxed);
        Stats {
            reads: get(&self.reads),
            read_bytes: Bytes(get(&self.read_bytes)),
            writes: get(&self.writes),
            write_bytes: Bytes(get(&self.write_bytes)),
            flushes: get(&self.flushes),
            discards: get(&self.discards),
            errors: get(&self.errors),
        }
    }
}

//! Writes records to a disk and checks that none that was acknowledged is lost.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use crate::Result;
use crate::args::Args;
use crate::check::{Found, block_of, verdict};
use crate::record::{Record, SIZE};

/// O_DIRECT wants memory aligned to the device's blocks.
#[repr(C, align(4096))]
struct Aligned([u8; SIZE]);

struct Lane {
    file: File,
    name: String,
    start: u64,
    blocks: u64,
    seed: u64,
}

impl Lane {
    fn open(args: &mut Args, write: bool) -> Result<Lane> {
        let name: String = args.require("dev")?;
        let blocks = args.take_or("blocks", 1024)?;
        if blocks < 2 {
            return Err("blocks must be at least 2".to_owned());
        }
        let sync = if write { libc::O_DSYNC } else { 0 };
        let file = File::options()
            .read(true)
            .write(write)
            .custom_flags(libc::O_DIRECT | sync)
            .open(&name)
            .map_err(|error| format!("{name}: {error}"))?;
        let start = args.take_or("start", 0)?;
        let seed = args.take_or("seed", 1)?;
        Ok(Lane { file, name, start, blocks, seed })
    }

    fn offset(&self, block: u64) -> u64 {
        (self.start + block) * SIZE as u64
    }

    fn write(&self, sequence: u64, buffer: &mut Aligned) -> Result<()> {
        let block = block_of(sequence, self.blocks);
        Record { seed: self.seed, sequence, block }.encode(&mut buffer.0);
        self.file
            .write_all_at(&buffer.0, self.offset(block))
            .map_err(|error| format!("{}: write {sequence}: {error}", self.name))
    }

    fn read_all(&self) -> Result<Vec<Found>> {
        let mut buffer = Aligned([0; SIZE]);
        let read = |block| {
            self.file
                .read_exact_at(&mut buffer.0, self.offset(block))
                .map_err(|error| format!("{}: read of block {block}: {error}", self.name))?;
            Ok(match Record::decode(&buffer.0) {
                Some(record) if record.seed == self.seed && record.block == block => {
                    Found::Sequence(record.sequence)
                }
                None if buffer.0 == [0; SIZE] => Found::Blank,
                _ => Found::Damaged,
            })
        };
        (0..self.blocks).map(read).collect()
    }
}

/// Prints `disk: acked N` once write N is acknowledged by the device.
pub fn write(args: &mut Args) -> Result<()> {
    let lane = Lane::open(args, true)?;
    let count = args.take_or("count", u64::MAX)?;
    let every = args.take_or("every", 1u64)?.max(1);
    let resume = args.take_or("resume", "no".to_owned())? == "yes";
    args.finish()?;

    let mut buffer = Aligned([0; SIZE]);
    let newest = if resume { verdict(&lane.read_all()?, 0)? } else { 0 };
    if newest == 0 {
        // What an earlier user left would pass for damage.
        buffer.0.fill(0);
        for block in 0..lane.blocks {
            lane.file
                .write_all_at(&buffer.0, lane.offset(block))
                .map_err(|error| format!("{}: clearing block {block}: {error}", lane.name))?;
        }
    }
    println!("disk: start {newest}");
    for sequence in (newest + 1..).take(usize::try_from(count).unwrap_or(usize::MAX)) {
        lane.write(sequence, &mut buffer)?;
        if sequence % every == 0 {
            println!("disk: acked {sequence}");
            std::io::stdout().flush().map_err(|error| error.to_string())?;
        }
    }
    println!("disk: done");
    Ok(())
}

/// Prints `disk: ok newest=N`, or fails and says which write is lost.
pub fn check(args: &mut Args) -> Result<()> {
    let lane = Lane::open(args, false)?;
    let acked = args.take_or("acked", 0)?;
    args.finish()?;
    let newest = verdict(&lane.read_all()?, acked)?;
    println!("disk: ok newest={newest}");
    Ok(())
}

//! Prints a counter: a gap in it is time that the guest did not run.

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;
use crate::args::Args;

/// Prints `tick N MILLISECONDS`, both since the start, by the guest's own clock.
pub fn run(args: &mut Args) -> Result<()> {
    let period = Duration::from_millis(args.take_or("ms", 100u64)?.max(1));
    let count = args.take_or("count", u32::MAX)?;
    args.finish()?;
    let start = Instant::now();
    for tick in 1..=count {
        if let Some(early) = (period * tick).checked_sub(start.elapsed()) {
            thread::sleep(early);
        }
        println!("tick {tick} {}", start.elapsed().as_millis());
        std::io::stdout().flush().map_err(|error| error.to_string())?;
    }
    Ok(())
}

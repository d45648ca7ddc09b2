//! Dirties memory at a given rate and checks that it holds what was written there.

use std::thread;
use std::time::{Duration, Instant};

use crate::Result;
use crate::args::Args;

const PAGE_WORDS: usize = 4096 / 8;
const PAGES_PER_MIB: u64 = 256;
const SLICE: Duration = Duration::from_millis(10);

/// Prints `dirty: pass N ok` each time that all of the memory was verified and rewritten.
pub fn run(args: &mut Args) -> Result<()> {
    let rate: u64 = args.take_or("rate", 10)?;
    let mib: u64 = args.take_or("mib", 16)?;
    let passes = args.take_or("passes", u64::MAX)?;
    args.finish()?;
    if rate == 0 || mib == 0 {
        return Err("rate and mib must be at least 1".to_owned());
    }
    let pages = usize::try_from(mib * PAGES_PER_MIB).map_err(|error| error.to_string())?;
    let mut memory = Vec::new();
    memory
        .try_reserve_exact(pages * PAGE_WORDS)
        .map_err(|_| format!("there is no room for {mib} MiB"))?;
    memory.resize(pages * PAGE_WORDS, 0);

    let pages_per_second = (rate * PAGES_PER_MIB) as f64;
    let (start, mut written) = (Instant::now(), 0u64);
    for pass in 1..=passes {
        for (index, page) in memory.chunks_exact_mut(PAGE_WORDS).enumerate() {
            verify(page, index, pass - 1)?;
            fill(page, index, pass);
            written += 1;
            let due = Duration::from_secs_f64(written as f64 / pages_per_second);
            if let Some(early) = due.checked_sub(start.elapsed())
                && early >= SLICE
            {
                thread::sleep(early);
            }
        }
        println!("dirty: pass {pass} ok");
    }
    Ok(())
}

fn stamp(page: usize, pass: u64, word: usize) -> u64 {
    if pass == 0 { 0 } else { pass << 40 | (page as u64) << 12 | word as u64 }
}

fn fill(page: &mut [u64], index: usize, pass: u64) {
    // A word a cache line: enough to see what was lost, cheap under emulation.
    for (word, value) in page.iter_mut().enumerate().step_by(8) {
        *value = stamp(index, pass, word);
    }
}

fn verify(page: &[u64], index: usize, pass: u64) -> Result<()> {
    let wrong = page
        .iter()
        .enumerate()
        .step_by(8)
        .find(|(word, value)| **value != stamp(index, pass, *word));
    match wrong {
        None => Ok(()),
        Some((word, value)) => Err(format!(
            "page {index} word {word} holds {value:#x}, pass {pass} wrote {:#x}",
            stamp(index, pass, word)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_another_pass_or_place_is_seen() {
        let mut page = [0; PAGE_WORDS];
        verify(&page, 5, 0).unwrap();
        fill(&mut page, 5, 3);
        verify(&page, 5, 3).unwrap();
        assert!(verify(&page, 5, 2).unwrap_err().contains("page 5"));
        assert!(verify(&page, 6, 3).is_err());
    }
}

//! Dirties memory at a given rate and checks that it holds what was written there.
//!
//! Every page carries the number of the write that it got last, so a page that a
//! migration forgot is seen at the next visit. With `hot=N` each group of pages is
//! written N times before the next one: the writes after the first pass no slow path
//! of an emulator, which is where lost pages come from.

use std::thread;
use std::time::{Duration, Instant};

use crate::Result;
use crate::args::Args;

const PAGE_WORDS: usize = 4096 / 8;
const PAGES_PER_MIB: u64 = 256;
const GROUP_PAGES: usize = 64;
const SLICE: Duration = Duration::from_millis(10);

/// Prints `dirty: pass N ok` each time that all of the memory was verified and rewritten.
pub fn run(args: &mut Args) -> Result<()> {
    let rate: u64 = args.take_or("rate", 10)?;
    let mib: u64 = args.take_or("mib", 16)?;
    let hot: u64 = args.take_or("hot", 1)?;
    let passes = args.take_or("passes", u64::MAX)?;
    args.finish()?;
    if mib == 0 || hot == 0 {
        return Err("mib and hot must be at least 1".to_owned());
    }
    let mut memory = Memory::new(mib, hot)?;
    let mut pace = Pace::new(rate);
    for pass in 1..=passes {
        memory.rewrite(pass, |pages| pace.written(pages))?;
        println!("dirty: pass {pass} ok");
    }
    Ok(())
}

struct Memory {
    words: Vec<u64>,
    hot: u64,
}

impl Memory {
    fn new(mib: u64, hot: u64) -> Result<Memory> {
        let pages = usize::try_from(mib * PAGES_PER_MIB).map_err(|error| error.to_string())?;
        let mut words = Vec::new();
        words
            .try_reserve_exact(pages * PAGE_WORDS)
            .map_err(|_| format!("there is no room for {mib} MiB"))?;
        words.resize(pages * PAGE_WORDS, 0);
        Ok(Memory { words, hot })
    }

    /// Verifies each page and writes it anew, a group after the other.
    fn rewrite(&mut self, pass: u64, mut wrote: impl FnMut(usize)) -> Result<()> {
        let (before, hot) = ((pass - 1) * self.hot, self.hot);
        for first in (0..self.words.len() / PAGE_WORDS).step_by(GROUP_PAGES) {
            for write in before..before + hot {
                let group = self.words[first * PAGE_WORDS..].chunks_exact_mut(PAGE_WORDS);
                let mut pages = 0;
                for (index, page) in (first..).zip(group.take(GROUP_PAGES)) {
                    if let Some(wrong) = wrong(page, index, write) {
                        return Err(self.report(&wrong, index, pass));
                    }
                    fill(page, index, write + 1);
                    pages += 1;
                }
                wrote(pages);
            }
        }
        Ok(())
    }

    /// How much is wrong besides the page that was met first. The group that it is in
    /// is left out, for it is half written.
    fn report(&self, first: &str, at: usize, pass: u64) -> String {
        let group = at / GROUP_PAGES;
        let is_wrong = |(index, page): &(usize, &[u64])| {
            let write = if index / GROUP_PAGES < group { pass } else { pass - 1 } * self.hot;
            index / GROUP_PAGES != group && wrong(page, *index, write).is_some()
        };
        let pages = self.words.chunks_exact(PAGE_WORDS).enumerate();
        let others = pages.filter(is_wrong).count();
        format!("{first}; {others} pages elsewhere are wrong")
    }
}

/// Waits so that no more is written than the rate allows.
struct Pace {
    pages_per_second: f64,
    start: Instant,
    written: u64,
}

impl Pace {
    /// In MiB/s; 0 is as fast as it goes.
    fn new(rate: u64) -> Pace {
        let pages_per_second = (rate * PAGES_PER_MIB) as f64;
        Pace { pages_per_second, start: Instant::now(), written: 0 }
    }

    fn written(&mut self, pages: usize) {
        if self.pages_per_second == 0.0 {
            return;
        }
        self.written += pages as u64;
        let due = Duration::from_secs_f64(self.written as f64 / self.pages_per_second);
        if let Some(early) = due.checked_sub(self.start.elapsed())
            && early >= SLICE
        {
            thread::sleep(early);
        }
    }
}

fn stamp(page: usize, write: u64, word: usize) -> u64 {
    if write == 0 { 0 } else { write << 36 | (page as u64) << 9 | word as u64 }
}

fn fill(page: &mut [u64], index: usize, write: u64) {
    // A word a cache line: enough to see what was lost, cheap under emulation.
    for (word, value) in page.iter_mut().enumerate().step_by(8) {
        *value = stamp(index, write, word);
    }
}

/// What is wrong with a page that should hold this write.
fn wrong(page: &[u64], index: usize, write: u64) -> Option<String> {
    let mut words = page.iter().enumerate().step_by(8);
    let (word, value) = words.find(|(word, value)| **value != stamp(index, write, *word))?;
    let wanted = stamp(index, write, word);
    Some(format!("page {index} word {word} holds {value:#x}, write {write} put {wanted:#x} there"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_another_write_or_place_is_seen() {
        let mut page = [0; PAGE_WORDS];
        assert_eq!(wrong(&page, 5, 0), None);
        fill(&mut page, 5, 3);
        assert_eq!(wrong(&page, 5, 3), None);
        assert!(wrong(&page, 5, 2).unwrap().contains("page 5"));
        assert!(wrong(&page, 6, 3).is_some());
    }

    #[test]
    fn pages_that_went_back_in_time_are_counted() {
        let mut memory = Memory::new(2, 3).unwrap();
        let mut pages = 0;
        memory.rewrite(1, |n| pages += n).unwrap();
        assert_eq!(pages, 3 * 512);
        let old = memory.words.clone();
        memory.rewrite(2, |_| ()).unwrap();
        for page in [70, 200, 511] {
            let words = page * PAGE_WORDS..(page + 1) * PAGE_WORDS;
            memory.words[words.clone()].copy_from_slice(&old[words]);
        }
        let error = memory.rewrite(3, |_| ()).unwrap_err();
        assert!(error.starts_with("page 70 ") && error.ends_with("2 pages elsewhere are wrong"));
    }

    #[test]
    fn a_whole_memory_stays_right() {
        let mut memory = Memory::new(1, 2).unwrap();
        for pass in 1..5 {
            memory.rewrite(pass, |_| ()).unwrap();
        }
    }
}

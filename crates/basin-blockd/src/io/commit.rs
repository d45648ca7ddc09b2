//! One write-back of metadata for many writers.
//!
//! A guest believes that what was acknowledged outlives this process, if not the
//! machine. The library keeps tables in memory, so a write is acknowledged only
//! when the tables that lead to it are in the file. Writers that come while a
//! write-back runs share the next one.

use std::io;
use std::sync::{Condvar, Mutex, PoisonError};

#[derive(Default)]
struct State {
    /// The number of the next write-back to begin.
    next: u64,
    running: bool,
    /// All before this one have ended.
    ended: u64,
    /// Those of the last ones that failed, with their errno.
    failed: Vec<(u64, Option<i32>)>,
}

#[derive(Default)]
pub struct Commits {
    state: Mutex<State>,
    changed: Condvar,
}

impl Commits {
    /// Returns when a write-back has ended that began after this call did.
    pub fn commit(&self, write_back: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = state.next;
        while state.running && state.ended <= mine {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.ended > mine {
            return match state.failed.iter().find(|(n, _)| *n == mine) {
                None => Ok(()),
                Some((_, Some(errno))) => Err(io::Error::from_raw_os_error(*errno)),
                Some((_, None)) => Err(io::Error::other("the metadata could not be written")),
            };
        }
        state.running = true;
        state.next = mine + 1;
        drop(state);
        let guard = End { commits: self, number: mine };
        let outcome = write_back();
        guard.end(&outcome);
        outcome
    }

    fn finish(&self, number: u64, failure: Option<Option<i32>>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.running = false;
        state.ended = number + 1;
        if state.failed.len() > 64 {
            // Whoever waited for these has long looked.
            state.failed.drain(..32);
        }
        state.failed.extend(failure.map(|errno| (number, errno)));
        drop(state);
        self.changed.notify_all();
    }
}

/// Wakes the others even if the library panics.
struct End<'a> {
    commits: &'a Commits,
    number: u64,
}

impl End<'_> {
    fn end(self, outcome: &io::Result<()>) {
        let failure = outcome.as_ref().err().map(io::Error::raw_os_error);
        self.commits.finish(self.number, failure);
        std::mem::forget(self);
    }
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.commits.finish(self.number, Some(None));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn each_writer_is_covered_by_a_write_back_that_began_after_it() {
        let commits = Commits::default();
        let (written, stable, count) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let mine = written.fetch_add(1, Ordering::SeqCst) + 1;
                        let write_back = || {
                            let seen = written.load(Ordering::SeqCst);
                            std::thread::yield_now();
                            stable.fetch_max(seen, Ordering::SeqCst);
                            count.fetch_add(1, Ordering::SeqCst);
                            Ok(())
                        };
                        commits.commit(write_back).unwrap();
                        assert!(stable.load(Ordering::SeqCst) >= mine);
                    }
                });
            }
        });
        assert!(count.load(Ordering::SeqCst) <= 1600);
    }

    #[test]
    fn an_error_reaches_whom_it_concerns() {
        let commits = Commits::default();
        let full = || Err(io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!(commits.commit(full).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        commits.commit(|| Ok(())).unwrap();
    }
}

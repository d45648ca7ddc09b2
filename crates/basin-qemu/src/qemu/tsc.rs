//! The frequency of this CPU's time stamp counter, which an emulated guest reads too.

use std::arch::x86_64::_rdtsc;
use std::time::{Duration, Instant};

/// Measured over some milliseconds, best of three: an interruption only ever makes a
/// measurement worse.
pub fn frequency_khz() -> Option<u32> {
    let mut best: Option<(Duration, u32)> = None;
    for _ in 0..3 {
        let before = Instant::now();
        // SAFETY: every x86-64 CPU has the instruction.
        let first = unsafe { _rdtsc() };
        let between = Instant::now();
        std::thread::sleep(Duration::from_millis(5));
        let start_error = between - before;
        let before = Instant::now();
        // SAFETY: as above.
        let last = unsafe { _rdtsc() };
        let elapsed = before - between;
        let error = start_error + before.elapsed();
        let ticks = u128::from(last.checked_sub(first)?);
        let khz = ticks * 1_000_000 / elapsed.as_nanos().max(1);
        let khz = u32::try_from(khz).ok()?;
        if best.is_none_or(|(least, _)| error < least) {
            best = Some((error, khz));
        }
    }
    best.map(|(_, khz)| khz)
}

//! What the measurements of whole machines share.

#![allow(dead_code, reason = "each measurement uses its part")]

pub mod bare;
pub mod libvirt;
pub mod proc;
pub mod qmp;

use std::time::{Duration, Instant};

/// Milliseconds, as figures have them.
pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// What `work` returns, and how long it took.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let begin = Instant::now();
    let result = work();
    (result, ms(begin.elapsed()))
}

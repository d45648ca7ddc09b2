//! Pure. Decisions about the whole data centre: `(snapshot) -> plan + reasons` (DESIGN D6).
//!
//! No clock, no randomness, no I/O, no async: what the daemon decides, a test, a
//! simulator and a what-if command decide in the very same way.

pub mod baseline;
pub mod drain;
pub mod movable;
pub mod place;

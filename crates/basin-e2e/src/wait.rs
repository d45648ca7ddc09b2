//! Waiting for what has to come, however slow the machine is.

use std::time::{Duration, Instant};

/// Within this a guest boots, an import ends: generous, for two slow processors.
pub const BOOT: Duration = Duration::from_secs(240);

/// Within this the daemon notices something and acts.
pub const SOON: Duration = Duration::from_secs(90);

const PAUSE: Duration = Duration::from_millis(50);

/// Waits until `look` finds something; panics when it does not within `limit`.
#[track_caller]
pub fn eventually<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(since.elapsed() < limit, "waited {limit:?} in vain: {what}");
        std::thread::sleep(PAUSE);
    }
}

/// Waits until `look` says yes; panics when it does not soon.
#[track_caller]
pub fn until(what: &str, mut look: impl FnMut() -> bool) {
    eventually(what, SOON, || look().then_some(()));
}

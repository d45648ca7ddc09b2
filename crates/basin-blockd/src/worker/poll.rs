//! Pure. How long a worker looks for work before it sleeps.
//!
//! Sleeping costs a wake-up on the next event, looking costs CPU. The window
//! follows what waiting has brought lately: it grows while events come within
//! the bound, and goes to nothing when they do not, so that an idle worker sleeps.

use std::time::Duration;

/// A window that adapts.
#[derive(Debug)]
pub struct Adaptive {
    window: Duration,
    max: Duration,
}

const FIRST: Duration = Duration::from_micros(4);

impl Adaptive {
    pub fn new(max: Duration) -> Adaptive {
        Adaptive { window: Duration::ZERO, max }
    }

    /// How long to look now.
    pub fn window(&self) -> Duration {
        self.window
    }

    /// It took `waited` in all, looking and asleep, for something to happen.
    pub fn waited(&mut self, waited: Duration) {
        if waited <= self.window {
            return;
        }
        self.window = if waited > self.max {
            self.window / 2
        } else {
            (self.window * 2).clamp(FIRST, self.max).min(self.max)
        };
        if self.window < FIRST {
            self.window = Duration::ZERO;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: Duration = Duration::from_micros(32);

    fn after(waits: &[u64]) -> Duration {
        let mut poll = Adaptive::new(MAX);
        for us in waits {
            poll.waited(Duration::from_micros(*us));
        }
        poll.window()
    }

    #[test]
    fn quick_events_open_the_window_and_slow_ones_close_it() {
        assert_eq!(after(&[]), Duration::ZERO);
        assert_eq!(after(&[10, 10, 10]), Duration::from_micros(16));
        assert_eq!(after(&[30; 8]), MAX);
        assert_eq!(after(&[30, 30, 30, 30, 500, 500, 500, 500]), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn the_window_is_bounded(waits in proptest::collection::vec(any::<u64>(), 0..50)) {
            prop_assert!(after(&waits) <= MAX);
        }
    }
}

//! Pure. A limit of bytes a second: tokens come with time, bytes take them. Time
//! comes in as an argument.

use std::time::Duration;

/// What may be sent at once after a rest.
const BURST: Duration = Duration::from_millis(100);

/// Tokens, as bytes.
#[derive(Debug)]
pub struct Bucket {
    rate: Option<u64>,
    tokens: f64,
    at: Duration,
}

impl Bucket {
    /// `None`: no limit.
    pub fn new(rate: Option<u64>, now: Duration) -> Bucket {
        Bucket { rate, tokens: 0.0, at: now }
    }

    pub fn set_rate(&mut self, rate: Option<u64>, now: Duration) {
        self.refill(now);
        self.rate = rate;
        self.tokens = self.tokens.min(0.0);
    }

    fn refill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.at = self.at.max(now);
        if let Some(rate) = self.rate {
            let rate = rate.max(1) as f64;
            self.tokens = (self.tokens + passed * rate).min(rate * BURST.as_secs_f64());
        } else {
            self.tokens = 0.0;
        }
    }

    /// How long the debt lasts.
    pub fn debt(&mut self, now: Duration) -> Duration {
        self.take(0, now)
    }

    /// Takes tokens for `bytes`, into debt if it must be; how long the debt lasts.
    pub fn take(&mut self, bytes: u64, now: Duration) -> Duration {
        self.refill(now);
        let Some(rate) = self.rate else { return Duration::ZERO };
        self.tokens -= bytes as f64;
        // Not beyond what one can wait for, whatever the guest writes.
        let rate = rate.max(1) as f64;
        self.tokens = self.tokens.max(-rate * 3600.0);
        Duration::from_secs_f64((-self.tokens / rate).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn over_any_time_no_more_than_the_rate_and_the_burst(
            sizes in proptest::collection::vec(1u64..300_000, 1..100),
            rests in proptest::collection::vec(0u64..500, 100),
            rate in 1000u64..10_000_000,
        ) {
            let mut now = Duration::from_secs(5);
            let begin = now;
            let mut bucket = Bucket::new(Some(rate), now);
            let mut sent = 0;
            for (size, rest) in sizes.into_iter().zip(rests) {
                now += Duration::from_millis(rest);
                // As the copy does: wait first, send then.
                now += bucket.take(size, now);
                sent += size;
                let passed = (now - begin).as_secs_f64() + BURST.as_secs_f64();
                prop_assert!(sent as f64 <= passed * rate as f64 * 1.0001 + 1.0);
            }
        }
    }

    #[test]
    fn a_steady_sender_gets_the_rate() {
        let mut now = Duration::ZERO;
        let mut bucket = Bucket::new(Some(1_000_000), now);
        for _ in 0..100 {
            now += bucket.take(10_000, now);
        }
        assert!((now.as_secs_f64() - 1.0).abs() < 0.01, "{now:?}");
        bucket.set_rate(None, now);
        assert_eq!(bucket.take(1 << 40, now), Duration::ZERO);
        bucket.set_rate(Some(1000), now);
        assert_eq!(bucket.debt(now), Duration::ZERO);
        assert_eq!(bucket.take(1000, now), Duration::from_secs(1));
    }
}

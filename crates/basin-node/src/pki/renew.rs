//! Pure. When a certificate is to be replaced: at two thirds of its life.

use jiff::{SignedDuration, Timestamp};

/// What to do about a certificate now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    Later {
        at: Timestamp,
    },
    Due,
    /// Other servers refuse it already.
    Expired,
}

pub fn renewal(now: Timestamp, not_before: Timestamp, not_after: Timestamp) -> Renewal {
    let life = not_after.duration_since(not_before).max(SignedDuration::ZERO);
    let at = not_before + SignedDuration::from_secs(life.as_secs() / 3 * 2);
    match now {
        now if now >= not_after => Renewal::Expired,
        now if now >= at => Renewal::Due,
        _ => Renewal::Later { at },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_thirds_of_life() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let check = |now: i64, expect| assert_eq!(renewal(at(now), at(1000), at(1900)), expect);
        check(0, Renewal::Later { at: at(1600) });
        check(1599, Renewal::Later { at: at(1600) });
        check(1600, Renewal::Due);
        check(1899, Renewal::Due);
        check(1900, Renewal::Expired);
        // Nonsense is replaced, not waited for.
        assert_eq!(renewal(at(5), at(9), at(3)), Renewal::Expired);
    }
}

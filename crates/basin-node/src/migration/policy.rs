//! Pure. What the operator wants of a migration, in the engine's words.

use basin_model::vm::{MigrationPolicy, PostcopyPolicy};
use basin_qemu::migrate::{LastResort, Policy, Postcopy};

pub fn policy(wanted: &MigrationPolicy) -> Policy {
    let usual = Policy::default();
    let downtime = wanted.downtime.unwrap_or(usual.downtime);
    Policy {
        downtime,
        // Whoever accepts a longer silence accepts that one.
        most_downtime: wanted.most_downtime.unwrap_or(usual.most_downtime).max(downtime),
        bandwidth: wanted.bandwidth,
        throttle: !wanted.no_throttle,
        postcopy: match wanted.postcopy {
            PostcopyPolicy::Never => Postcopy::Never,
            PostcopyPolicy::Fallback => Postcopy::Fallback,
            PostcopyPolicy::AtOnce => Postcopy::AtOnce,
        },
        last: if wanted.or_stay { LastResort::GiveUp } else { LastResort::Stop },
        ..usual
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_is_not_said_is_as_usual() {
        assert_eq!(policy(&MigrationPolicy::default()), Policy::default());
        let long = Duration::from_secs(5);
        let asked = MigrationPolicy { downtime: Some(long), or_stay: true, ..Default::default() };
        let policy = policy(&asked);
        assert_eq!((policy.downtime, policy.most_downtime), (long, long));
        assert_eq!(policy.last, LastResort::GiveUp);
    }
}

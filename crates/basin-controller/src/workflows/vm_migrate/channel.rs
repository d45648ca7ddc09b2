//! Pure. How a guest's memory goes over: decided from the policy and the two servers.

use std::num::NonZeroU8;

use basin_model::vm::{MigrationPolicy, PostcopyPolicy};
use basin_qemu::migrate::Channel;

/// From so many CPUs on a server has some to spare for connections of their own.
const SOME_CPUS: u32 = 4;
const MANY_CPUS: u32 = 8;

/// What is worth having. One connection carries what an emulated guest writes, and a small
/// server has no CPU for more; a guest on KVM writes faster than one thread encrypts.
/// Post-copy and several connections exclude each other. Nothing is compressed: whether
/// the link is slower than that is not known beforehand.
pub fn wanted(policy: &MigrationPolicy, accelerator: &str, cpus: [u32; 2]) -> Channel {
    let postcopy = policy.postcopy != PostcopyPolicy::Never;
    let streams = match cpus[0].min(cpus[1]) {
        _ if postcopy || accelerator != "kvm" => None,
        cpus if cpus >= MANY_CPUS => NonZeroU8::new(4),
        cpus if cpus >= SOME_CPUS => NonZeroU8::new(2),
        _ => None,
    };
    Channel { postcopy, streams, compress: false }
}

/// Why what both servers can do is not what was asked for.
pub fn too_little(policy: &MigrationPolicy, agreed: Channel, why: &[String]) -> Option<String> {
    let missing = policy.postcopy == PostcopyPolicy::AtOnce && !agreed.postcopy;
    missing.then(|| why.join("; "))
}

/// The policy that can be held to over this channel.
pub fn possible(policy: &MigrationPolicy, channel: Channel) -> MigrationPolicy {
    let postcopy = if channel.postcopy { policy.postcopy } else { PostcopyPolicy::Never };
    MigrationPolicy { postcopy, ..*policy }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(postcopy: PostcopyPolicy, accelerator: &str, cpus: [u32; 2], expect: (bool, u8)) {
        let policy = MigrationPolicy { postcopy, ..Default::default() };
        let channel = wanted(&policy, accelerator, cpus);
        let streams = channel.streams.map_or(1, NonZeroU8::get);
        assert_eq!((channel.postcopy, streams), expect, "{postcopy:?} {accelerator} {cpus:?}");
    }

    #[test]
    fn connections_are_as_many_as_the_smaller_server_can_spare() {
        check(PostcopyPolicy::Never, "tcg", [64, 64], (false, 1));
        check(PostcopyPolicy::Never, "kvm", [64, 2], (false, 1));
        check(PostcopyPolicy::Never, "kvm", [64, 4], (false, 2));
        check(PostcopyPolicy::Never, "kvm", [8, 64], (false, 4));
        check(PostcopyPolicy::Fallback, "kvm", [64, 64], (true, 1));
        check(PostcopyPolicy::AtOnce, "tcg", [2, 2], (true, 1));
    }

    #[test]
    fn postcopy_that_was_insisted_on_is_not_silently_left_out() {
        let why = ["no post-copy: not here".to_owned()];
        for (postcopy, refuses) in [
            (PostcopyPolicy::Never, false),
            (PostcopyPolicy::Fallback, false),
            (PostcopyPolicy::AtOnce, true),
        ] {
            let policy = MigrationPolicy { postcopy, ..Default::default() };
            let refusal = too_little(&policy, Channel::default(), &why);
            assert_eq!(refusal.is_some(), refuses, "{postcopy:?}");
            let possible = possible(&policy, Channel::default());
            assert_eq!(possible.postcopy, PostcopyPolicy::Never);
        }
    }
}

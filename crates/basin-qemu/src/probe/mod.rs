//! Whether this host's KVM runs stock kernels, and fast (DESIGN D2).
//!
//! A guest of a few hundred bytes does in kernel mode what such kernels do. It runs in a
//! child process: a vCPU that never comes back is killed, and takes nothing along.

mod child;
mod guest;
mod verdict;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::time::Duration;

use basin_model::host::KvmVerdict;

/// A good KVM takes some 20 ms for all of it.
const LIMIT: Duration = Duration::from_secs(3);
const DEVICE: &str = "/dev/kvm";

/// Runs the probe. Takes 3 s at most.
pub fn kvm() -> KvmVerdict {
    let unusable = |reason: String| KvmVerdict { usable: false, reason };
    let meta = match fs::metadata(DEVICE) {
        Ok(meta) if meta.file_type().is_char_device() => meta,
        _ => {
            let why = "there is no /dev/kvm: the CPU's virtualization is off in the firmware, not \
                       offered by the hypervisor below, or the module kvm_intel or kvm_amd is not loaded";
            return unusable(why.to_owned());
        }
    };
    let verdict = match child::run(LIMIT) {
        Ok(outcome) => verdict::judge(&outcome),
        Err(error) => unusable(format!("the probe could not run: {error}")),
    };
    if verdict.usable && meta.mode() & 0o006 != 0o006 && kvm_group().is_none() {
        return unusable(format!(
            "{DEVICE} is for root only, and machines run as users of their own: give it to a \
             group (chgrp kvm {DEVICE}; chmod g+rw {DEVICE})"
        ));
    }
    verdict
}

/// The group that may use KVM, where it takes one.
pub fn kvm_group() -> Option<u32> {
    let meta = fs::metadata(DEVICE).ok()?;
    (meta.mode() & 0o060 == 0o060 && meta.gid() != 0).then(|| meta.gid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_comes_to_an_end_and_says_why() {
        let started = std::time::Instant::now();
        let verdict = kvm();
        assert!(!verdict.reason.is_empty());
        // Far beyond the limit: only a hang fails this.
        assert!(started.elapsed() < LIMIT * 20, "{verdict:?}");
    }
}

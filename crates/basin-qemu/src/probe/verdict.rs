//! What the probe's outcome means.

use std::time::Duration;

use basin_model::host::KvmVerdict;

use super::guest::Stage;

/// How the guest's run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum End {
    /// Not within the limit.
    #[default]
    Hung,
    /// As it should.
    Halted,
    /// A request to KVM failed with this errno.
    Refused(i32),
    /// KVM gave up running it, for this reason (`KVM_EXIT_*`).
    Stopped(u32),
}

/// What happened to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    pub reached: Stage,
    pub end: End,
    /// The loop's time in the guest and without one.
    pub guest: Duration,
    pub native: Duration,
    /// The price of one exit to the host.
    pub exit: Duration,
}

impl Default for Outcome {
    fn default() -> Self {
        Outcome {
            reached: Stage::Nothing,
            end: End::Hung,
            guest: Duration::ZERO,
            native: Duration::ZERO,
            exit: Duration::ZERO,
        }
    }
}

/// Emulation is some 5 to 10 times slower than the CPU itself; KVM beyond that is of no use.
const TOO_SLOW: u32 = 5;
/// An exit takes 1 to 5 us, up to some 50 us under another hypervisor.
const EXIT_TOO_SLOW: Duration = Duration::from_micros(500);

pub fn judge(outcome: &Outcome) -> KvmVerdict {
    let ms = |d: Duration| format!("{:.1} ms", d.as_secs_f64() * 1e3);
    let figures = format!(
        "20 million turns of a loop in kernel mode took {}, {} without KVM; an exit takes {:.1} us",
        ms(outcome.guest),
        ms(outcome.native),
        outcome.exit.as_secs_f64() * 1e6
    );
    let failing = match outcome.reached {
        Stage::Nothing => "entering 64-bit kernel mode",
        Stage::LongMode => "lock cmpxchg16b",
        Stage::CmpXchg16b => "xsave and xrstor",
        Stage::XSave => "int3 through an interrupt gate",
        Stage::Int3 => "a loop in kernel mode",
        Stage::Loop => "exits to the host",
    };
    let bad = |why: String| KvmVerdict { usable: false, reason: why };
    match outcome.end {
        End::Refused(errno) => {
            bad(format!("KVM refused at {failing}: {}", std::io::Error::from_raw_os_error(errno)))
        }
        End::Hung => bad(format!("KVM did not finish {failing} in time")),
        End::Stopped(reason) => {
            let what = match reason {
                8 => "a triple fault",
                9 => "a failed entry",
                17 => "an internal error of KVM",
                _ => "an unexpected exit",
            };
            bad(format!("KVM does not run what stock kernels need: {failing} ended in {what}"))
        }
        End::Halted if outcome.reached < Stage::Loop => {
            bad(format!("KVM computes wrongly: {failing} had the wrong result"))
        }
        End::Halted if outcome.guest > outcome.native * TOO_SLOW => {
            bad(format!("KVM is slower than emulation: {figures}"))
        }
        End::Halted if outcome.exit > EXIT_TOO_SLOW => bad(format!("KVM is too slow: {figures}")),
        End::Halted => KvmVerdict { usable: true, reason: figures },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(reached: Stage, end: End, guest_ms: u64, usable: bool, expect: &str) {
        let outcome = Outcome {
            reached,
            end,
            guest: Duration::from_millis(guest_ms),
            native: Duration::from_millis(20),
            exit: Duration::from_micros(2),
        };
        let verdict = judge(&outcome);
        assert_eq!(verdict.usable, usable, "{verdict:?}");
        assert!(verdict.reason.contains(expect), "{verdict:?}");
    }

    #[test]
    fn every_outcome_has_its_reason() {
        check(Stage::Loop, End::Halted, 21, true, "took 21.0 ms, 20.0 ms without KVM");
        check(Stage::Loop, End::Halted, 900, false, "slower than emulation");
        check(Stage::LongMode, End::Stopped(17), 0, false, "cmpxchg16b ended in an internal error");
        check(Stage::XSave, End::Stopped(8), 0, false, "int3 through an interrupt gate ended in a");
        check(Stage::Int3, End::Hung, 0, false, "a loop in kernel mode in time");
        check(Stage::Nothing, End::Refused(13), 0, false, "Permission denied");
        check(Stage::CmpXchg16b, End::Halted, 0, false, "xsave and xrstor had the wrong result");
    }
}

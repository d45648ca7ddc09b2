//! Pure. A VM that is not this server's: nothing of it may stay here.

use basin_model::vm::{Phase, Vm, VmStatus};
use basin_qemu::MachineState;

use super::{Action, Decision, Facts, enter};

/// The VM is deleted, or another server's: nothing of it may stay here.
pub(super) fn let_go(
    desired: Option<&Vm>,
    status: Option<&VmStatus>,
    facts: &Facts<'_>,
) -> Decision {
    let reason =
        if desired.is_none() { "the VM is deleted" } else { "the VM is not this server's" };
    let step = |action, status| Decision { action, reason, status, wake: None };
    if desired.is_some()
        && facts.machine.as_ref().is_some_and(|m| m.state == MachineState::Switching)
    {
        // It has memory that nobody else has yet.
        let reason = "the guest fetches the rest of its memory";
        return Decision { action: Action::Rest, reason, status: None, wake: None };
    }
    if facts.machine.is_some() {
        return step(Action::Kill, None);
    }
    if facts.parts {
        return step(Action::Dismantle, None);
    }
    let ours = status.filter(|s| s.host == facts.host);
    match (desired, ours) {
        (None, ours) => step(Action::LetGo { forget: ours.is_some() }, None),
        // Tells the next owner that this one has let go; refused if it wrote already.
        (Some(_), Some(old)) => {
            let mut last = old.clone();
            if facts.news.guest_off {
                last.ended_epoch = last.started_epoch;
            }
            enter(&mut last, Phase::Stopped, facts.now);
            step(Action::LetGo { forget: false }, Some(last))
        }
        (Some(_), None) => step(Action::LetGo { forget: false }, None),
    }
}

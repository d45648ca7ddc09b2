//! Pure. What a server does next about one VM: what is wanted and what is, in; one step, out.
//!
//! A step is a status to write, then one action. The status comes first because
//! it holds the outcome: once a machine is destroyed nothing else can tell that
//! its guest had shut down by itself. So a crash between any two steps loses
//! nothing, and the next decision goes on from the status. Steps follow one
//! another until the action is [`Action::Rest`] and the status stays the same.
//!
//! ```text
//!             launch              guest off, stop, policy
//!  Stopped ──> Starting ──> Running <──> Paused ──────> Stopped
//!                 ^  │         │ │
//!                 │  │ failed  │ └─ shut down ─> ShuttingDown ─> Stopped
//!                 │  v         v
//!            BackingOff <── crashed, died ──> Crashed or Failed (left), Stopped
//! ```
//!
//! `Stopped` is written only when nothing of the VM is left on the server: no
//! process, no export, no tap. Whoever waits for it may delete the disks.

mod let_go;
#[cfg(test)]
mod table_tests;
#[cfg(test)]
mod world_tests;

use std::time::Duration;

use basin_model::vm::{
    Failure, FailureKind, OnFailure, Phase, Placement, Power, PowerOff, QemuProcess, Vm, VmStatus,
    restart_backoff,
};
use basin_model::{Generation, HostId};
use basin_qemu::MachineState;
use jiff::Timestamp;

/// After this long without a failure, the next one is the first again.
pub const RUNS_WELL_AFTER: Duration = Duration::from_secs(300);

/// A guest that is still booting misses the power button; it is pressed again this often.
pub const PRESS_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// What is known about the VM beside its records.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    pub now: Timestamp,
    /// This server.
    pub host: HostId,
    /// The VM's machine here; none once its process is gone.
    pub machine: Option<Seen>,
    /// What happened since the last status was written.
    pub news: &'a News,
    /// Exports, taps or a seed may be there.
    pub parts: bool,
    /// The server has rebooted since the status was written, and no start was tried since.
    pub rebooted: bool,
}

/// A machine, as seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub generation: Generation,
    pub state: MachineState,
    pub process: QemuProcess,
    /// When the power button was last pressed.
    pub pressed: Option<Timestamp>,
    /// `Run::resets` when it was last reset on request.
    pub reset_to: u64,
}

/// What happened since the last status was written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct News {
    /// The guest turned itself off.
    pub guest_off: bool,
    /// The guest panicked or its watchdog fired.
    pub crash: Option<FailureKind>,
    /// The process ended unasked, with these words.
    pub died: Option<String>,
    pub start_failed: Option<StartFailure>,
    /// How often the guest rebooted itself. It runs on; nothing follows from it.
    pub guest_reboots: u32,
}

/// Why the VM did not start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartFailure {
    pub message: String,
    /// How often in a row this may happen before it is given up. 1: waiting mends nothing.
    pub tries: u32,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub action: Action,
    /// For the log.
    pub reason: &'static str,
    /// What the status is to be before the action is taken; none: left alone.
    pub status: Option<VmStatus>,
    /// When to decide again even if nothing happens.
    pub wake: Option<Timestamp>,
}

/// What to do to the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Rest,
    Launch,
    PressPowerButton,
    Pause,
    Resume,
    Reset,
    /// The guest stays after all: its disks are taken back, and it goes on.
    Reclaim,
    Kill,
    /// Close exports and taps.
    Dismantle,
    /// Nothing of the VM is here any more; `forget`: its status goes as well.
    LetGo {
        forget: bool,
    },
}

/// Decides the next step.
pub fn decide(desired: Option<&Vm>, status: Option<&VmStatus>, facts: &Facts<'_>) -> Decision {
    let mine = |p: &Placement| {
        let fenced = status.is_some_and(|s| s.generation > p.generation);
        p.host == facts.host && !fenced
    };
    match desired.and_then(|vm| Some((vm, vm.placement.filter(mine)?))) {
        None => let_go::let_go(desired, status, facts),
        Some((vm, placement)) => {
            let status = begin(vm, placement, status, facts);
            Case { vm, placement, facts, status }.decide()
        }
    }
}

/// The status to go on from: the one there is, or a new hand-over's.
fn begin(vm: &Vm, placement: Placement, status: Option<&VmStatus>, facts: &Facts<'_>) -> VmStatus {
    let running = facts.machine.is_some();
    let phase = if running || facts.parts { Phase::Starting } else { Phase::Stopped };
    match status {
        Some(s) if s.host == facts.host && s.generation == placement.generation => s.clone(),
        Some(s) => VmStatus {
            host: facts.host,
            generation: placement.generation,
            phase,
            since: facts.now,
            failures: 0,
            qemu: None,
            ..s.clone()
        },
        None => VmStatus {
            vm: vm.id,
            host: facts.host,
            generation: placement.generation,
            phase,
            since: facts.now,
            // A machine without a status: the record was lost, the machine is right.
            started_epoch: if running { vm.run.epoch } else { 0 },
            ended_epoch: 0,
            resets_seen: vm.run.resets,
            failures: 0,
            last_failure: None,
            qemu: None,
        },
    }
}

fn enter(status: &mut VmStatus, phase: Phase, now: Timestamp) {
    if status.phase != phase {
        if matches!(phase, Phase::Stopped | Phase::Failed | Phase::BackingOff { .. }) {
            status.qemu = None;
        }
        status.phase = phase;
        status.since = now;
    }
}

fn is_away(state: &MachineState) -> bool {
    matches!(state, MachineState::Switching | MachineState::Migrated)
}

fn after(from: Timestamp, pause: Duration) -> Timestamp {
    from.checked_add(pause).unwrap_or(Timestamp::MAX)
}

/// A VM that this server owns.
struct Case<'a> {
    vm: &'a Vm,
    placement: Placement,
    facts: &'a Facts<'a>,
    status: VmStatus,
}

impl Case<'_> {
    fn decide(mut self) -> Decision {
        let off_by_itself = self.facts.news.guest_off
            || self.facts.machine.as_ref().is_some_and(|m| m.state == MachineState::Shutdown);
        if off_by_itself && !self.epoch_over() {
            self.status.ended_epoch = self.status.started_epoch;
        }
        match self.facts.machine.clone() {
            Some(machine) if machine.generation != self.placement.generation => {
                self.act(Action::Kill, "the machine is of an older hand-over")
            }
            Some(machine) if is_away(&machine.state) && self.stays_wanted() => self.away(),
            Some(machine) => self.with_machine(&machine),
            None if self.vm.migration.is_some() && self.wanted() => {
                // It may run at its target, which is asked first.
                self.rest_until("its machine ended while it moved", None)
            }
            None => self.without_machine(),
        }
    }

    /// Whoever moves is not turned off; and whoever is turned off is not taken back.
    fn stays_wanted(&self) -> bool {
        self.vm.migration.is_some() || self.wanted()
    }

    /// The guest has gone over, or is about to.
    fn away(self) -> Decision {
        match self.vm.migration {
            Some(_) => self.rest_until("the guest moves to another server", None),
            // Whoever ended the migration knows that it never ran there.
            None => self.act(Action::Reclaim, "the guest did not arrive, and goes on here"),
        }
    }

    fn epoch_over(&self) -> bool {
        self.status.started_epoch <= self.status.ended_epoch
    }

    /// Whether it should run now or again.
    fn wanted(&self) -> bool {
        matches!(self.vm.run.power, Power::Running | Power::Paused)
            && self.vm.run.epoch > self.status.ended_epoch
    }

    fn with_machine(self, machine: &Seen) -> Decision {
        if self.epoch_over() {
            return self.act(Action::Kill, "what was asked of the machine is over");
        }
        if let Phase::BackingOff { .. } = self.status.phase {
            return self.act(Action::Kill, "the machine failed and is started anew");
        }
        match self.vm.run.power {
            Power::Off { how: PowerOff::Now } => self.finish("asked to power off"),
            Power::Off { how: PowerOff::Graceful { deadline } } => {
                self.shut_down(machine, deadline)
            }
            Power::Running | Power::Paused => match self.status.phase {
                // The guest was told already; it may heed that at any time. Starting
                // it again during that means: once it is down.
                Phase::ShuttingDown { deadline }
                    if self.vm.run.epoch > self.status.started_epoch =>
                {
                    self.shut_down(machine, deadline)
                }
                _ if machine.state == MachineState::Crashed => self.crashed(machine),
                _ => self.run(machine),
            },
        }
    }

    /// Ends the epoch and the machine.
    fn finish(mut self, reason: &'static str) -> Decision {
        self.status.ended_epoch = self.status.started_epoch;
        self.act(Action::Kill, reason)
    }

    fn shut_down(mut self, machine: &Seen, deadline: Timestamp) -> Decision {
        if self.facts.now >= deadline {
            return self.finish("the guest did not shut down in time");
        }
        if machine.state == MachineState::Crashed {
            return self.finish("a crashed guest cannot shut down");
        }
        enter(&mut self.status, Phase::ShuttingDown { deadline }, self.facts.now);
        if machine.state == MachineState::Paused {
            return self.act(Action::Resume, "a paused guest cannot shut down");
        }
        let next = machine.pressed.map(|at| after(at, PRESS_AGAIN_AFTER));
        match next {
            Some(next) if next > self.facts.now => {
                self.rest_until("the guest shuts down", Some(next.min(deadline)))
            }
            _ => self.act(Action::PressPowerButton, "asked to shut down"),
        }
    }

    fn resets_left(&self, machine: &Seen) -> bool {
        self.vm.run.resets > self.status.resets_seen.max(machine.reset_to)
    }

    fn crashed(mut self, machine: &Seen) -> Decision {
        if self.resets_left(machine) {
            return self.act(Action::Reset, "asked to reset a crashed guest");
        }
        if self.status.phase == Phase::Crashed {
            if self.vm.run.epoch > self.status.started_epoch {
                return self.finish("asked to start a crashed guest anew");
            }
            return self.rest_until("the guest crashed and is left as it is", None);
        }
        let kind = self.facts.news.crash.unwrap_or(FailureKind::GuestPanic);
        let message = match kind {
            FailureKind::Watchdog => "the guest did not feed its watchdog",
            _ => "the guest's kernel panicked",
        };
        self.fail(kind, message.to_owned());
        match self.vm.spec.policy.guest_crash {
            OnFailure::Restart => {
                self.back_off();
                self.act(Action::Kill, "the guest crashed and is started anew")
            }
            OnFailure::Stop => self.finish("the guest crashed and is powered off"),
            OnFailure::Leave => {
                enter(&mut self.status, Phase::Crashed, self.facts.now);
                self.rest_until("the guest crashed and is left as it is", None)
            }
        }
    }

    /// The machine is in order: see that it does what is wanted.
    fn run(mut self, machine: &Seen) -> Decision {
        let now = self.facts.now;
        if let Some(kind) = self.facts.news.crash {
            let message = "the guest crashed and went on by itself".to_owned();
            self.status.last_failure = Some(Failure { at: now, kind, message });
        }
        self.status.started_epoch = self.status.started_epoch.max(self.vm.run.epoch);
        self.status.qemu = Some(machine.process.clone());
        if self.resets_left(machine) {
            return self.act(Action::Reset, "asked to reset");
        }
        self.status.resets_seen = self.vm.run.resets.max(self.status.resets_seen);
        match (self.vm.run.power, &machine.state) {
            (Power::Paused, MachineState::Paused) => {
                enter(&mut self.status, Phase::Paused, now);
                self.rest_until("paused, as wanted", None)
            }
            (Power::Paused, _) => self.act(Action::Pause, "asked to pause"),
            (_, MachineState::Paused) => self.act(Action::Resume, "asked to resume"),
            _ => {
                enter(&mut self.status, Phase::Running, now);
                self.forgive();
                let proven = after(self.status.since, RUNS_WELL_AFTER);
                let wake = (self.status.failures > 0).then_some(proven);
                self.rest_until("runs, as wanted", wake)
            }
        }
    }

    fn without_machine(mut self) -> Decision {
        if !self.wanted() {
            return self.stay_down();
        }
        if self.vm.run.epoch > self.status.started_epoch {
            self.status.failures = 0;
            return self.start("asked to start");
        }
        match (&self.status.phase, &self.facts.news.start_failed) {
            (Phase::Starting, Some(failure)) => {
                let failure = failure.clone();
                self.start_failed(failure)
            }
            _ if self.facts.rebooted => self.start("the server has rebooted"),
            (Phase::BackingOff { until }, _) => {
                let until = *until;
                if self.facts.parts {
                    self.act(Action::Dismantle, "failed, and is tried again later")
                } else if self.facts.now >= until {
                    self.start("tried again after a failure")
                } else {
                    self.rest_until("failed, and is tried again later", Some(until))
                }
            }
            (Phase::Starting, _) if self.facts.news.died.is_some() => self.died(),
            (Phase::Starting | Phase::Stopped | Phase::Failed, _) => {
                self.start("its start was interrupted")
            }
            (Phase::Running | Phase::Paused | Phase::ShuttingDown { .. } | Phase::Crashed, _) => {
                self.died()
            }
        }
    }

    /// Not wanted, and no machine.
    fn stay_down(mut self) -> Decision {
        let off = matches!(self.vm.run.power, Power::Off { .. });
        if off {
            let asked = self.status.started_epoch.max(self.vm.run.epoch);
            self.status.ended_epoch = self.status.ended_epoch.max(asked);
        }
        if self.facts.parts {
            return self.act(Action::Dismantle, "stopped");
        }
        if off || self.status.phase != Phase::Failed {
            self.status.resets_seen = self.status.resets_seen.max(self.vm.run.resets);
            enter(&mut self.status, Phase::Stopped, self.facts.now);
        }
        self.rest_until("stopped", None)
    }

    fn start(mut self, reason: &'static str) -> Decision {
        if self.facts.parts {
            return self.act(Action::Dismantle, "what an earlier start left is in the way");
        }
        enter(&mut self.status, Phase::Starting, self.facts.now);
        self.status.started_epoch = self.vm.run.epoch;
        self.status.resets_seen = self.status.resets_seen.max(self.vm.run.resets);
        self.status.qemu = None;
        self.act(Action::Launch, reason)
    }

    fn start_failed(mut self, failure: StartFailure) -> Decision {
        let again =
            self.status.last_failure.as_ref().is_some_and(|f| f.kind == FailureKind::StartFailed);
        if !again {
            self.status.failures = 0;
        }
        self.fail(FailureKind::StartFailed, failure.message);
        if self.status.failures >= failure.tries {
            self.status.ended_epoch = self.status.started_epoch;
            enter(&mut self.status, Phase::Failed, self.facts.now);
            return self.rest_until("cannot be started", None);
        }
        let wake = self.back_off();
        self.rest_until("could not be started, and is tried again", Some(wake))
    }

    /// The process ended unasked.
    fn died(mut self) -> Decision {
        let how = match &self.facts.news.died {
            Some(words) => format!("QEMU ended unasked: {words}"),
            None => "QEMU ended while the daemon was not running".to_owned(),
        };
        self.fail(FailureKind::MachineDied, how);
        let reason = match self.vm.spec.policy.machine_death {
            OnFailure::Restart => {
                self.back_off();
                "QEMU died, and is started anew"
            }
            OnFailure::Stop => {
                self.status.ended_epoch = self.status.started_epoch;
                "QEMU died, and the VM stays off"
            }
            OnFailure::Leave => {
                self.status.ended_epoch = self.status.started_epoch;
                enter(&mut self.status, Phase::Failed, self.facts.now);
                "QEMU died, and is left as it is"
            }
        };
        let action = if self.facts.parts { Action::Dismantle } else { Action::Rest };
        self.act(action, reason)
    }

    fn fail(&mut self, kind: FailureKind, message: String) {
        self.forgive();
        self.status.failures = self.status.failures.saturating_add(1);
        self.status.last_failure = Some(Failure { at: self.facts.now, kind, message });
    }

    /// Whoever has run well for a while starts with a clean sheet.
    fn forgive(&mut self) {
        let proven = self.status.phase == Phase::Running
            && after(self.status.since, RUNS_WELL_AFTER) <= self.facts.now;
        if proven {
            self.status.failures = 0;
        }
    }

    fn back_off(&mut self) -> Timestamp {
        let until = after(self.facts.now, restart_backoff(self.status.failures));
        enter(&mut self.status, Phase::BackingOff { until }, self.facts.now);
        until
    }

    fn act(self, action: Action, reason: &'static str) -> Decision {
        Decision { action, reason, status: Some(self.status), wake: None }
    }

    fn rest_until(self, reason: &'static str, wake: Option<Timestamp>) -> Decision {
        Decision { action: Action::Rest, reason, status: Some(self.status), wake }
    }
}

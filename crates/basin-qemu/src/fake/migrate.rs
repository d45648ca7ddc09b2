//! Migrations between fake machines, over a link that a test can spoil.
//!
//! A link is what the worlds of several servers share: a target listens on it, a source
//! finds it there by its address. Time passes as the test's clock says.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use basin_model::{Bytes, BytesPerSecond};
use tokio::time::Instant;

use super::link::{FakeLink, Fault, FaultPoint};
use super::machine::FakeMachine;
use crate::engine::{EngineError, MachineEvent, MachineState};
use crate::migrate::{Channel, Limits, MigrationKey, MigrationPhase};

/// A machine's part in a migration.
#[derive(Default)]
pub(super) struct Side {
    /// Of a target.
    pub(super) expects: Option<(MigrationKey, Channel)>,
    pub(super) listens: Option<SocketAddr>,
    pub(super) phase: Option<MigrationPhase>,
    pub(super) out: Option<Out>,
    /// How fast the guest writes.
    pub(super) dirty_rate: BytesPerSecond,
}

/// A source's copying, as a fluid that runs as long as the link is up.
pub(super) struct Out {
    pub(super) target: Weak<FakeMachine>,
    pub(super) link: FakeLink,
    pub(super) hold: bool,
    pub(super) limits: Limits,
    pub(super) begun: Instant,
    pub(super) seen: Instant,
    pub(super) transferred: Bytes,
    pub(super) remaining: Bytes,
    pub(super) passes: u64,
    pub(super) went_on: bool,
    pub(super) stuck: bool,
    pub(super) ran_before: bool,
}

impl FakeMachine {
    pub(super) fn expect(&self, key: MigrationKey, channel: Channel) {
        let mut state = self.state();
        state.machine = MachineState::Incoming;
        state.side.expects = Some((key, channel));
    }

    pub(super) fn refused(what: &'static str, why: &str) -> EngineError {
        EngineError::Refused { what, why: why.to_owned() }
    }

    pub(super) fn enter(&self, phase: MigrationPhase) {
        self.state().side.phase = Some(phase.clone());
        self.tell(MachineEvent::Migration(phase));
    }

    /// Lets the time that has passed happen.
    pub(super) fn advance(self: &Arc<Self>) {
        loop {
            let phase = self.state().side.phase.clone();
            let went_on = match phase {
                Some(MigrationPhase::Setup) => {
                    self.reach(FaultPoint::Start, MigrationPhase::Active)
                }
                Some(MigrationPhase::Active) => self.copy(),
                Some(MigrationPhase::PreSwitchover) => self.hold_or_go(),
                Some(MigrationPhase::Switching) => self.switch(),
                Some(MigrationPhase::Postcopy) => self.fetch(),
                _ => false,
            };
            if !went_on {
                return;
            }
        }
    }

    /// Meets a fault, if there is one here; else goes on to `next`.
    fn reach(self: &Arc<Self>, point: FaultPoint, next: MigrationPhase) -> bool {
        if self.meet(point) {
            return false;
        }
        self.enter(next);
        true
    }

    /// Whether the migration stands still from here.
    fn meet(self: &Arc<Self>, point: FaultPoint) -> bool {
        let Some((link, target)) =
            self.state().side.out.as_ref().map(|out| (out.link.clone(), out.target.upgrade()))
        else {
            return true;
        };
        match link.fault_at(point) {
            Some(Fault::SourceDies) => self.die("a fault of the test"),
            Some(Fault::TargetDies) => {
                if let Some(target) = &target {
                    target.die("a fault of the test");
                }
            }
            // What the kernel took is gone from the source, whatever becomes of it.
            Some(Fault::LinkBroken) if point == FaultPoint::Sent => {
                if let Some(target) = &target {
                    target.die("the stream broke");
                }
            }
            Some(Fault::LinkBroken) if point == FaultPoint::Running => {}
            Some(Fault::LinkBroken) => {
                self.break_off("the connection broke");
                return true;
            }
            Some(Fault::LinkCut) => link.cut(true),
            None => {}
        }
        if self.current() == MachineState::Gone {
            // Its target sees the connection end.
            if let Some(target) = target.filter(|target| target.current() == MachineState::Incoming)
            {
                target.die("the source went away");
            }
            return true;
        }
        if link.state().cut {
            return true;
        }
        let gone = target.is_none_or(|target| target.current() == MachineState::Gone);
        if gone && !matches!(point, FaultPoint::Sent | FaultPoint::Running) {
            self.break_off("the target went away");
        }
        gone
    }

    /// The connection is gone: a target that waits ends, a source that has not sent all
    /// goes on with its guest.
    fn break_off(self: &Arc<Self>, why: &str) {
        let out = self.state().side.out.take();
        let Some(out) = out else { return };
        if let Some(target) = out.target.upgrade()
            && target.current() == MachineState::Incoming
        {
            target.die("the stream broke");
        }
        self.run_again(out.ran_before);
        self.enter(MigrationPhase::Failed { why: why.to_owned() });
    }

    pub(super) fn run_again(&self, ran_before: bool) {
        let stopped = self.current() == MachineState::Switching;
        if stopped && ran_before {
            self.turn(Some(MachineState::Running), MachineEvent::Resumed);
        } else if stopped {
            self.state().machine = MachineState::Paused;
        }
    }

    fn copy(self: &Arc<Self>) -> bool {
        let (half, done) = {
            let mut state = self.state();
            let dirty = state.side.dirty_rate;
            let running = state.machine == MachineState::Running;
            let Some(out) = state.side.out.as_mut() else { return false };
            let link = out.link.state();
            let rate = out.limits.bandwidth.map_or(link.bandwidth, |l| l.min(link.bandwidth));
            let cut = link.cut;
            drop(link);
            let now = Instant::now();
            let passed = (now - out.seen).as_secs_f64();
            out.seen = now;
            if cut {
                return false;
            }
            let sent = ((rate.get() as f64 * passed) as u64).min(out.remaining.get());
            let written = if running { (dirty.get() as f64 * passed) as u64 } else { 0 };
            out.transferred += Bytes(sent);
            let total = self.spec.memory;
            if sent >= out.remaining.get() {
                out.passes += 1;
            }
            out.remaining = out.remaining.saturating_sub(Bytes(sent));
            out.remaining = (out.remaining + Bytes(written)).min(total);
            let time_left = out.remaining.get() as f64 / rate.get().max(1) as f64;
            (
                out.transferred.get() >= total.get() / 2,
                time_left <= out.limits.downtime.as_secs_f64(),
            )
        };
        if half && self.meet(FaultPoint::Copying) {
            return false;
        }
        if !done {
            return false;
        }
        let ran = self.current() == MachineState::Running;
        {
            let mut state = self.state();
            let Some(out) = state.side.out.as_mut() else { return false };
            out.ran_before = ran;
        }
        self.turn(Some(MachineState::Switching), MachineEvent::Switching);
        self.enter(MigrationPhase::PreSwitchover);
        true
    }

    fn hold_or_go(self: &Arc<Self>) -> bool {
        let go = self.state().side.out.as_ref().is_some_and(|out| !out.hold || out.went_on);
        self.meet(FaultPoint::BeforeSwitch);
        let over = self.state().side.out.is_none() || self.current() == MachineState::Gone;
        // Whatever the link does: what is sent next is on its own.
        if over || !go {
            return false;
        }
        self.enter(MigrationPhase::Switching);
        true
    }

    fn switch(self: &Arc<Self>) -> bool {
        let (target, sent) = {
            let state = self.state();
            let Some(out) = state.side.out.as_ref() else { return false };
            (out.target.upgrade(), out.stuck)
        };
        if !sent && self.meet(FaultPoint::Switching) {
            return false;
        }
        if let Some(out) = self.state().side.out.as_mut() {
            out.stuck = true;
        }
        let stands = self.meet(FaultPoint::Sent);
        if !stands && let Some(target) = target.filter(|t| t.current() == MachineState::Incoming) {
            let ran = self.state().side.out.as_ref().is_some_and(|out| out.ran_before);
            match ran {
                true => target.turn(Some(MachineState::Running), MachineEvent::Resumed),
                false => target.turn(Some(MachineState::Paused), MachineEvent::Paused),
            }
            target.enter(MigrationPhase::Completed);
        }
        if stands || self.meet(FaultPoint::Running) {
            // All that a source knows is that the kernel took its bytes.
            let cut = self.state().side.out.as_ref().is_none_or(|out| out.link.state().cut);
            if cut || self.current() == MachineState::Gone {
                return false;
            }
        }
        self.finish();
        false
    }

    fn finish(&self) {
        self.state().side.out = None;
        self.state().machine = MachineState::Migrated;
        self.enter(MigrationPhase::Completed);
    }

    /// Post-copy: the guest is over, its memory follows.
    fn fetch(self: &Arc<Self>) -> bool {
        if self.meet(FaultPoint::Running) {
            return false;
        }
        let (done, target) = {
            let mut state = self.state();
            let Some(out) = state.side.out.as_mut() else { return false };
            let rate = out.link.state().bandwidth;
            let now = Instant::now();
            let sent = Bytes((rate.get() as f64 * (now - out.seen).as_secs_f64()) as u64);
            out.seen = now;
            out.transferred += sent.min(out.remaining);
            out.remaining = out.remaining.saturating_sub(sent);
            (out.remaining == Bytes::ZERO, out.target.upgrade())
        };
        if done {
            if let Some(target) = target {
                target.enter(MigrationPhase::Completed);
            }
            self.finish();
        }
        false
    }

    pub(super) fn me(&self) -> Result<Arc<FakeMachine>, EngineError> {
        self.world.machine(self.vm()).ok_or(EngineError::Gone)
    }
}

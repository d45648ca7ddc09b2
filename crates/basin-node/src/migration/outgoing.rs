//! Drives the source: first the disks that move along, then the guest's memory.

use std::sync::Arc;
use std::time::Duration;

use basin_blockd::control::{Mirror, MirrorPhase, MirrorState};
use basin_model::vm::Vm;
use basin_model::{Bytes, BytesPerSecond, Generation, TaskId, VolumeId};
use basin_qemu::migrate::{
    Drive, DriveError, MigrationPhase, Moved, Outgoing, Pilot, Policy, Progress,
};
use basin_qemu::{EngineError, Machine, MachineState};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::gate::{DisksGate, Leaving, leaving, take_back};
use super::policy::policy;
use super::types::{Begin, Copied, Report, Stage};
use super::{Answer, Migrations};
use crate::api::NodeError;
use crate::disks::Disks;
use crate::problem::{node_error, problem};
use crate::vms::Vms;

/// How often disks that are copied are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A guest on its way to another server.
pub struct Going {
    pub task: TaskId,
    report: watch::Receiver<Report>,
    cancel: CancellationToken,
}

/// Nothing but where it stands.
pub fn report(stage: Stage) -> Report {
    Report {
        stage,
        disks: Copied::default(),
        memory: Copied::default(),
        dirty_rate: BytesPerSecond::default(),
        bandwidth: BytesPerSecond::default(),
        remaining_time: None,
        throttle: 0,
        passes: 0,
    }
}

impl Going {
    pub fn start(
        migrations: &Migrations,
        vm: &Vm,
        machine: Arc<dyn Machine>,
        begin: &Begin,
    ) -> Answer<Arc<Going>> {
        let inner = &migrations.0;
        let own = vm.placement.filter(|p| p.host == inner.host);
        let Some(placement) = own else {
            let detail = format!("VM {} is not this server's to move", vm.meta.name);
            return Err(problem("migration-unknown", detail, "start the migration anew").into());
        };
        let exports = inner.parts.exports(vm.id).map_err(|e| NodeError(e.problem))?;
        let leaving = leaving(&exports, |volume| begin.prepared.disks.contains_key(&volume));
        let (sender, receiver) = watch::channel(report(Stage::Disks));
        let cancel = inner.stop.child_token();
        let cancelled = CancellationToken::new();
        let driver = Driver {
            name: vm.meta.name.to_string(),
            generation: placement.generation,
            machine,
            disks: inner.parts.disks.clone(),
            vms: inner.vms.clone(),
            leaving,
            begin: begin.clone(),
            policy: policy(&begin.policy),
            report: sender,
            cancel: cancelled.clone(),
        };
        // The daemon's end does not end the migration: the next one drives on.
        inner.tasks.spawn(async move { cancel.run_until_cancelled(driver.run()).await });
        Ok(Arc::new(Going { task: begin.task, report: receiver, cancel: cancelled }))
    }

    pub fn report(&self) -> Report {
        self.report.borrow().clone()
    }

    pub fn is_over(&self) -> bool {
        self.report.borrow().stage.is_over()
    }

    pub fn cancel(&self) {
        self.cancel.cancel();
    }
}

struct Driver {
    name: String,
    generation: Generation,
    machine: Arc<dyn Machine>,
    disks: Arc<dyn Disks>,
    vms: Vms,
    leaving: Vec<Leaving>,
    begin: Begin,
    policy: Policy,
    report: watch::Sender<Report>,
    cancel: CancellationToken,
}

/// The guest stays where it is.
struct Stay {
    cancelled: bool,
    why: String,
}

fn stayed(cancelled: bool, why: String) -> Stage {
    Stage::Stayed { cancelled, why, full: Vec::new() }
}

fn stay(why: impl std::fmt::Display) -> Stay {
    Stay { cancelled: false, why: why.to_string() }
}

impl Driver {
    async fn run(self) {
        tracing::info!(vm = self.name, "the guest begins to move");
        let mut stage = match self.has_gone().await {
            // An earlier daemon brought it to its end; the disks are the target's.
            true => self.move_guest().await,
            false => match self.copy_disks().await {
                Ok(()) => self.move_guest().await,
                Err(Stay { cancelled, why }) => stayed(cancelled, why),
            },
        };
        if let Stage::Stayed { full, .. } = &mut stage {
            *full = self.without_space().await;
        }
        if let Stage::Stayed { .. } = stage
            && let Err(error) = take_back(&*self.disks, &self.leaving).await
        {
            // Somebody has had the disk since: what is here is no longer the latest.
            stage = Stage::Unclear { why: format!("a disk cannot be taken back: {error}") };
        }
        tracing::info!(vm = self.name, ?stage, "the move is over at its source");
        let stands_still = matches!(stage, Stage::Unclear { .. });
        self.report.send_modify(|report| report.stage = stage);
        // After post-copy it may have memory that nobody else has.
        if stands_still && !self.begin.channel.postcopy {
            self.end_once_claimed().await;
        }
    }

    /// A machine that does not know whether its guest has gone is of no use once another
    /// server has claimed the VM.
    async fn end_once_claimed(&self) {
        let mut changes = self.vms.changes();
        loop {
            changes.borrow_and_update();
            let Some(vm) = self.vms.get(self.begin.vm) else { return };
            let claimed = vm.placement.is_some_and(|p| p.generation > self.generation);
            if claimed {
                if let Err(error) = self.machine.kill().await {
                    tracing::warn!(vm = self.name, %error, "what a guest has left stays");
                }
                return;
            }
            if vm.migration.is_none() || changes.changed().await.is_err() {
                return;
            }
        }
    }

    fn mirrored(&self) -> impl Iterator<Item = VolumeId> + '_ {
        self.leaving.iter().filter(|disk| disk.mirrored).map(|disk| disk.volume)
    }

    /// Until the disks that move are the same on both servers, and stay so.
    async fn copy_disks(&self) -> Result<(), Stay> {
        if self.mirrored().next().is_none() || self.has_begun().await {
            return Ok(());
        }
        for volume in self.mirrored() {
            let to = &self.begin.prepared.disks[&volume];
            let mirror = Mirror {
                volume,
                generation: self.generation,
                address: *to,
                export: volume,
                host: self.begin.to,
                limit: self.policy.bandwidth.map(|b| Bytes(b.get())),
            };
            self.disks.mirror(&mirror).await.map_err(stay)?;
        }
        loop {
            let states = self.mirrors().await.map_err(stay)?;
            let sum = |part: fn(&MirrorState) -> Bytes| states.iter().map(part).sum::<Bytes>();
            let copied = Copied { total: sum(|m| m.done + m.left), left: sum(|m| m.left) };
            let rate = sum(|m| m.rate);
            self.report.send_modify(|report| {
                report.disks = copied;
                report.bandwidth = BytesPerSecond(rate.get());
                report.remaining_time = seconds(copied.left, rate);
            });
            if let Some(MirrorPhase::Failed { reason, .. }) =
                states.iter().map(|m| &m.phase).find(|p| p.has_ended())
            {
                return Err(stay(format!("a disk cannot be copied: {reason}")));
            }
            let whole = states.len() == self.mirrored().count();
            if whole && states.iter().all(|m| m.phase == MirrorPhase::InSync) {
                return Ok(());
            }
            tokio::select! {
                () = self.cancel.cancelled() => {
                    let why = "it was cancelled".to_owned();
                    return Err(Stay { cancelled: true, why });
                }
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    async fn mirrors(&self) -> Result<Vec<MirrorState>, crate::disks::DiskError> {
        let all = self.disks.list().await?;
        let ours = |volume: VolumeId| self.mirrored().any(|v| v == volume);
        let ours = all.into_iter().filter(|state| ours(state.export.volume));
        Ok(ours.filter_map(|state| state.mirror).collect())
    }

    /// Disks for which the target had no room, as far as is known.
    async fn without_space(&self) -> Vec<VolumeId> {
        let states = self.mirrors().await.unwrap_or_default().into_iter();
        let full = states.filter(|m| matches!(m.phase, MirrorPhase::Failed { full: true, .. }));
        full.map(|state| state.mirror.volume).collect()
    }

    /// An earlier daemon brought it this far.
    async fn has_begun(&self) -> bool {
        let status = self.machine.migration().await;
        status.is_ok_and(|s| !matches!(s.phase, MigrationPhase::None) && !s.phase.is_over())
    }

    /// An earlier daemon brought it to its end. (The phase does not tell: a machine whose
    /// guest once came from elsewhere has completed that.)
    async fn has_gone(&self) -> bool {
        matches!(self.machine.state().await, Ok(MachineState::Migrated))
    }

    async fn move_guest(&self) -> Stage {
        self.report.send_modify(|report| {
            report.stage = Stage::Memory;
            report.remaining_time = None;
        });
        if !self.has_begun().await && !self.has_gone().await {
            let outgoing = Outgoing {
                to: self.begin.prepared.address,
                key: self.begin.key.clone(),
                channel: self.begin.channel,
                limits: Pilot::new(self.policy.clone()).limits(),
                hold: true,
                may_throttle: self.policy.throttle,
            };
            match self.machine.migrate(&outgoing).await {
                Ok(()) => {}
                Err(EngineError::Gone) => return Stage::SourceGone,
                Err(error) => {
                    return stayed(false, node_error(&error).0.detail);
                }
            }
        }
        let gate = DisksGate { disks: self.disks.clone(), leaving: self.leaving.clone() };
        let (progress, seen) = watch::channel(Progress::default());
        let drive = Drive {
            machine: &*self.machine,
            channel: self.begin.channel,
            policy: self.policy.clone(),
            gate: &gate,
            progress: &progress,
            cancel: &self.cancel,
        };
        let outcome = tokio::select! {
            outcome = drive.run() => outcome,
            () = self.tell(seen) => unreachable!("progress is told for as long as it is driven"),
        };
        match outcome {
            Ok(Moved { downtime, .. }) => Stage::Moved { downtime },
            Err(DriveError::Cancelled) => stayed(true, "it was cancelled".to_owned()),
            Err(DriveError::GaveUp { why } | DriveError::Failed { why }) => stayed(false, why),
            Err(DriveError::NotBegun) => stayed(false, "QEMU did not begin".to_owned()),
            Err(DriveError::Unclear { why }) => Stage::Unclear { why },
            Err(DriveError::SourceGone) => Stage::SourceGone,
        }
    }

    /// Never returns.
    async fn tell(&self, mut seen: watch::Receiver<Progress>) {
        while seen.changed().await.is_ok() {
            let now = seen.borrow_and_update().clone();
            self.report.send_modify(|report| {
                report.stage = match now.phase {
                    MigrationPhase::PreSwitchover
                    | MigrationPhase::Switching
                    | MigrationPhase::Completed => Stage::Switching,
                    MigrationPhase::Postcopy => Stage::Postcopy,
                    MigrationPhase::PostcopyPaused => Stage::PostcopyBroken,
                    _ => Stage::Memory,
                };
                report.memory = Copied { total: now.total, left: now.remaining };
                report.dirty_rate = now.outlook.dirty_rate;
                report.bandwidth = now.outlook.bandwidth;
                report.remaining_time = now.outlook.remaining_time;
                report.throttle = now.throttle;
                report.passes = now.passes;
            });
        }
        std::future::pending().await
    }
}

fn seconds(left: Bytes, rate: Bytes) -> Option<Duration> {
    let rate = rate.get();
    (rate > 0).then(|| Duration::from_secs(left.get() / rate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_told_where_there_is_a_rate() {
        assert_eq!(seconds(Bytes(10), Bytes::ZERO), None);
        assert_eq!(seconds(Bytes::mib(10), Bytes::mib(2)), Some(Duration::from_secs(5)));
    }
}

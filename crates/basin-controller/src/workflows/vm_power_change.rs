//! Shuts a VM down, pulls its plug, pauses, resumes or resets it. What is wanted
//! was written by the transaction that started this; what is left is to see it
//! done. It cannot be taken back: a power button that was pressed was pressed.

use std::time::Duration;

use basin_model::VmId;
use basin_model::task::Problem;
use basin_model::vm::{Phase, Power, PowerOff, Vm, VmStatus};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::observe;
use crate::app::{Services, problems};
use crate::workflow::{Step, StepContext, Workflow};

/// How long a server has beyond what it was told to wait itself.
const LIMIT: Duration = Duration::from_secs(60);

/// What changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    Off,
    Pause,
    Resume,
    Reset,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmPowerChange {
    vm: VmId,
    change: Change,
    epoch: u64,
    resets: u64,
    /// Until when a graceful shutdown may last.
    deadline: Option<Timestamp>,
}

impl VmPowerChange {
    /// `wanted` is the VM as the starting transaction left it.
    pub fn new(wanted: &Vm, change: Change) -> VmPowerChange {
        let deadline = match wanted.run.power {
            Power::Off { how: PowerOff::Graceful { deadline } } => Some(deadline),
            _ => None,
        };
        let (epoch, resets) = (wanted.run.epoch, wanted.run.resets);
        VmPowerChange { vm: wanted.id, change, epoch, resets, deadline }
    }

    async fn watch(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        let patience = self.deadline.map_or(Duration::ZERO, |deadline| {
            Duration::try_from(deadline.duration_since(Timestamp::now())).unwrap_or_default()
        });
        let flow = self.clone();
        observe::vm(self.vm, self.words(), patience + LIMIT, cx, |seen| {
            let Some(vm) = seen.vm else { return Some(flow.vanished()) };
            let status = seen.status?;
            flow.outcome(vm, status)
        })
        .await
    }

    fn words(&self) -> &'static str {
        match self.change {
            Change::Off => "Stopping the VM",
            Change::Pause => "Pausing the VM",
            Change::Resume => "Resuming the VM",
            Change::Reset => "Resetting the VM",
        }
    }

    fn vanished(&self) -> Result<(), Problem> {
        match self.change {
            Change::Off => Ok(()),
            _ => Err(problems::not_found("vm", &self.vm.to_string())),
        }
    }

    fn outcome(&self, vm: &Vm, status: &VmStatus) -> Option<Result<(), Problem>> {
        let stopped = matches!(status.phase, Phase::Stopped | Phase::Failed);
        let done = match self.change {
            Change::Off => stopped || status.started_epoch > self.epoch,
            Change::Pause => status.phase == Phase::Paused,
            Change::Resume => status.phase == Phase::Running,
            Change::Reset => status.resets_seen >= self.resets,
        };
        if done {
            return Some(Ok(()));
        }
        if stopped {
            let advice = "Start it again.";
            return Some(Err(problems::wrong_state("vm", &vm.meta.name, "stopped", advice)));
        }
        None
    }
}

impl Workflow for VmPowerChange {
    type Services = Services;
    const KIND: &'static str = "vm-power-change";

    fn subject(&self) -> String {
        format!("vm/{}", self.vm)
    }

    fn steps() -> Vec<Step<Self>> {
        vec![Step::without_undo("watch", Self::watch)]
    }
}

//! Starts a VM. The transaction that started this wants it running, on a server
//! that was chosen, in a new epoch; what is left is to see whether it came to be.
//!
//! | step  | does                | undone by      |
//! |-------|---------------------|----------------|
//! | watch | waits until it runs | wanting it off |

use std::time::Duration;

use basin_model::VmId;
use basin_model::keys;
use basin_model::task::Problem;
use basin_model::vm::{FailureKind, Phase, Power, PowerOff, Vm, VmStatus};
use serde::{Deserialize, Serialize};

use super::observe;
use crate::app::{self, Services};
use crate::workflow::{Step, StepContext, Workflow};

/// How long a server has to bring a machine up; the guest's own boot is not in it.
const START_LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmPowerOn {
    vm: VmId,
    epoch: u64,
}

impl VmPowerOn {
    /// `wanted` is the VM as the starting transaction left it.
    pub fn new(wanted: &Vm) -> VmPowerOn {
        VmPowerOn { vm: wanted.id, epoch: wanted.run.epoch }
    }

    async fn unwant(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        let epoch = self.epoch;
        let key = keys::vm(self.vm);
        let off = app::update(&*cx.services.store, &key, |mut vm: Vm| {
            // A later start is not this one's to take back.
            if vm.run.epoch == epoch {
                vm.run.power = Power::Off { how: PowerOff::Now };
            }
            Ok(vm)
        });
        match off.await {
            Err(problem) if problem.code != "not-found" => Err(problem),
            _ => Ok(()),
        }
    }

    async fn watch(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        running(self.vm, self.epoch, cx).await
    }
}

/// Waits until the VM has been seen to run in the epoch, or to have failed to.
pub async fn running(id: VmId, epoch: u64, cx: &StepContext<Services>) -> Result<(), Problem> {
    observe::vm(id, "Starting the VM", START_LIMIT, cx, |seen| {
        let Some(vm) = seen.vm else { return Some(Err(gone(id))) };
        if vm.run.epoch > epoch || matches!(vm.run.power, Power::Off { .. }) {
            return Some(Err(overtaken(vm)));
        }
        let status = seen.status.filter(|s| s.started_epoch >= epoch)?;
        outcome(vm, status)
    })
    .await
}

fn outcome(vm: &Vm, status: &VmStatus) -> Option<Result<(), Problem>> {
    match status.phase {
        Phase::Starting => None,
        Phase::BackingOff { .. } | Phase::Failed => Some(Err(failed(vm, status))),
        // Whatever became of it since, it ran.
        _ => Some(Ok(())),
    }
}

fn failed(vm: &Vm, status: &VmStatus) -> Problem {
    let failure = status.last_failure.as_ref();
    let why = failure.map_or("its server does not say why", |f| f.message.as_str());
    let code = match failure.map(|f| f.kind) {
        Some(FailureKind::StartFailed) | None => "start-failed",
        Some(_) => "machine-failed",
    };
    Problem {
        code: code.to_owned(),
        detail: format!("VM '{}' did not start: {why}", vm.meta.name),
        advice: format!(
            "'basin vm log {}' shows its console; 'basin doctor' examines the server.",
            vm.meta.name
        ),
    }
}

fn overtaken(vm: &Vm) -> Problem {
    Problem {
        code: "wrong-state".to_owned(),
        detail: format!("VM '{}' was asked for something else meanwhile.", vm.meta.name),
        advice: "Nothing is to be done, unless that was not meant.".to_owned(),
    }
}

fn gone(id: VmId) -> Problem {
    app::problems::not_found("vm", &id.to_string())
}

impl Workflow for VmPowerOn {
    type Services = Services;
    const KIND: &'static str = "vm-power-on";

    fn subject(&self) -> String {
        format!("vm/{}", self.vm)
    }

    fn steps() -> Vec<Step<Self>> {
        vec![Step::undoable("watch", Self::watch, Self::unwant)]
    }
}

//! Taking a move back: nothing but certainty that the guest is not at the target lets the
//! VM be its source's again. See the contract in the module.

use std::time::Duration;

use basin_model::task::Problem;
use basin_model::vm::Vm;
use basin_node::migration::types::{Aborted, Stage};
use basin_store::records::{CommitError, TxnBuilder};
use tokio::time::Instant;

use super::{LOOK_EVERY, Standing, VmMigrate};
use crate::app::nodes::{FIGURES_WITHIN, refused};
use crate::app::{Services, problems, store_problem};
use crate::workflow::StepContext;
use crate::workflows::observe::commit;

/// What a target is told it does in this time, or is told again: killing a QEMU, deleting
/// files.
const ABORT_WITHIN: Duration = Duration::from_secs(60);

/// How long is waited before the undo is begun anew, which people see.
const WAIT_FOR: Duration = Duration::from_secs(20);

impl VmMigrate {
    /// Undoes `prepare`: until the target has nothing of it any more, or has the VM.
    pub(super) async fn stand_down(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        if self.is_claimed(cx).await? {
            return Ok(());
        }
        // So that the source gives up by itself rather than by its stream's end. If it
        // cannot be told it sees that.
        let _ = self.tell_source_to_stop(cx).await;
        if self.abort_target(cx).await? {
            return Ok(());
        }
        self.await_claim(cx).await
    }

    /// Undoes `announce`: the VM is its source's again, or turns out to be the target's.
    pub(super) async fn withdraw(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        loop {
            let Some(record) = self.record(cx).await? else { return Ok(()) };
            match self.standing(Some(&record.value), cx.task) {
                Standing::NotUnderWay => return Ok(()),
                // It went over after all; the source is still to be tidied.
                Standing::Claimed => return self.tidy(cx).await,
                Standing::UnderWay => {}
            }
            if !self.abort_target(cx).await? {
                self.await_claim(cx).await?;
                continue;
            }
            self.await_source(cx).await?;
            let withdrawn = Vm { migration: None, ..record.value.clone() };
            match commit(TxnBuilder::new().replace(&record, &withdrawn), cx).await {
                Ok(_) => return Ok(()),
                Err(CommitError::Refused(_)) => {}
                Err(CommitError::Store(e)) => return Err(store_problem(&e)),
            }
        }
    }

    /// True: the target has nothing of the guest, and never will. False: it has it.
    pub(super) async fn abort_target(&self, cx: &StepContext<Services>) -> Result<bool, Problem> {
        // Somebody has vouched that it does not come back.
        if !cx.services.inventory.read().hosts.contains_key(&self.to) {
            return Ok(true);
        }
        let node = cx.services.nodes.get(self.to)?;
        let abort = node.migrate_abort(self.id(), cx.task);
        match tokio::time::timeout(ABORT_WITHIN, abort).await {
            Ok(Ok(Aborted::Dead)) => Ok(true),
            Ok(Ok(Aborted::Runs)) => Ok(false),
            Ok(Err(e)) => Err(refused(e)),
            Err(_) => Err(problems::silent(&self.name(self.to, cx), ABORT_WITHIN)),
        }
    }

    async fn is_claimed(&self, cx: &StepContext<Services>) -> Result<bool, Problem> {
        let record = self.record(cx).await?;
        Ok(self.standing(record.as_ref().map(|r| &r.value), cx.task) == Standing::Claimed)
    }

    async fn await_claim(&self, cx: &StepContext<Services>) -> Result<(), Problem> {
        let begun = Instant::now();
        while !self.is_claimed(cx).await? {
            if begun.elapsed() > WAIT_FOR {
                let target = self.name(self.to, cx);
                let detail = format!("{target} has the guest, and has not written that down yet");
                return Err(problems::waiting(detail));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Until the source's part is over. With its target dead it soon is.
    async fn await_source(&self, cx: &StepContext<Services>) -> Result<(), Problem> {
        let begun = Instant::now();
        loop {
            if !cx.services.inventory.read().hosts.contains_key(&self.from.host) {
                return Ok(());
            }
            let node = cx.services.nodes.get(self.from.host)?;
            let asked = node.migrate_report(self.id(), cx.task);
            let name = || self.name(self.from.host, cx);
            let report = match tokio::time::timeout(FIGURES_WITHIN, asked).await {
                Ok(report) => report.map_err(refused)?,
                Err(_) => return Err(problems::silent(&name(), FIGURES_WITHIN)),
            };
            // Unknown: a new daemon there drives nothing, and takes back what it finds.
            if report.stage.is_over() || report.stage == Stage::Unknown {
                return Ok(());
            }
            if begun.elapsed() > WAIT_FOR {
                let detail = format!("{} has not given up yet", name());
                return Err(problems::waiting(detail));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

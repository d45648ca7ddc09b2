//! Waiting for a server to have done what the store says it should.

use std::time::Duration;

use basin_model::VmId;
use basin_model::keys;
use basin_model::task::Problem;
use basin_model::vm::{Vm, VmStatus};
use basin_store::records::{CommitError, TxnBuilder};
use basin_store::{Revision, StoreError};

use crate::app::inventory::Snapshot;
use crate::app::{Services, problems, store_problem};
use crate::workflow::StepContext;

/// A VM as it is wanted and as it is seen, at one revision.
pub struct Seen<'a> {
    pub vm: Option<&'a Vm>,
    pub status: Option<&'a VmStatus>,
}

/// Waits until `decide` has an answer about the VM, for no longer than `limit`.
pub async fn vm<T>(
    id: VmId,
    what: &str,
    limit: Duration,
    cx: &StepContext<Services>,
    mut decide: impl FnMut(Seen<'_>) -> Option<Result<T, Problem>>,
) -> Result<T, Problem> {
    let inventory = &cx.services.inventory;
    let mut changes = inventory.changes();
    let answered = async {
        // The transaction that asked for this may not be in the inventory yet.
        if let Some(vm) = must(cx.services.store.get(&keys::vm(id)).await)? {
            inventory.at_least(vm.modified).await;
        }
        loop {
            changes.borrow_and_update();
            if let Some(answer) = look(&inventory.read(), id, &mut decide) {
                return answer;
            }
            if changes.changed().await.is_err() {
                return Err(problems::timeout(what));
            }
        }
    };
    tokio::select! {
        answer = answered => answer,
        () = tokio::time::sleep(limit) => Err(problems::timeout(what)),
        () = cx.cancel.cancelled() => Err(problems::cancelled()),
    }
}

fn look<T>(
    snapshot: &Snapshot,
    id: VmId,
    decide: &mut impl FnMut(Seen<'_>) -> Option<Result<T, Problem>>,
) -> Option<Result<T, Problem>> {
    decide(Seen {
        vm: snapshot.vms.get(&id).map(|r| &r.value),
        status: snapshot.vm_statuses.get(&id).map(|r| &r.value),
    })
}

/// Commits what a step changes, and waits for the inventory to have it.
pub async fn commit(txn: TxnBuilder, cx: &StepContext<Services>) -> Result<Revision, CommitError> {
    let revision = txn.commit(&*cx.services.store).await?;
    cx.services.inventory.at_least(revision).await;
    Ok(revision)
}

/// Commits a transaction without conditions that could be refused.
pub async fn commit_all(txn: TxnBuilder, cx: &StepContext<Services>) -> Result<(), Problem> {
    commit(txn, cx).await.map(drop).map_err(|e| match e {
        CommitError::Refused(condition) => problems::busy("record", condition.key()),
        CommitError::Store(e) => store_problem(&e),
    })
}

pub fn must<T>(result: Result<T, StoreError>) -> Result<T, Problem> {
    result.map_err(|e| store_problem(&e))
}

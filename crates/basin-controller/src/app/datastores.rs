//! Datastores.

use std::time::Duration;

use basin_api::datastore::DatastoreCreate;
use basin_api::reference::MetaPatch;
use basin_model::keys::{self, Kind};
use basin_model::task::{Problem, TaskState};
use basin_model::{DatastoreId, HostId};
use basin_store::Revision;

use super::{App, problems, unchanged};
use crate::intake::reach::{self, When};
use crate::intake::{self, meta};
use crate::workflows::datastore_create::DatastoreCreate as CreateFlow;

/// Making a datastore writes a few files; a file system that hangs is not waited for.
const MADE_WITHIN: Duration = Duration::from_secs(60);

const REPORTED_WITHIN: Duration = Duration::from_secs(10);

impl App {
    /// Makes a directory of a server a datastore, of that server or of all that
    /// have the same storage there. It is of the server that was `asked`, unless the
    /// request names another.
    pub async fn create_datastore(
        &self,
        request: &DatastoreCreate,
        asked: HostId,
    ) -> Result<DatastoreId, Problem> {
        let mut id = None;
        let task = self
            .start(|snapshot, mint| {
                let draft = intake::datastore::create(request, asked, snapshot, mint)?;
                id = Some(draft.datastore.id);
                Ok((CreateFlow::new(draft.datastore), draft.txn))
            })
            .await?;
        let task = self.wait_task(&task.id.to_string(), MADE_WITHIN).await?;
        match (task.value.state, id) {
            (TaskState::Done, Some(id)) => {
                self.reached(id).await;
                Ok(id)
            }
            (TaskState::Failed { problem } | TaskState::Undoing { problem }, _) => Err(problem),
            _ => {
                let advice = format!("See 'basin task show {}'.", task.value.id);
                Err(problems::wrong_state("datastore", &request.name, "not made yet", advice))
            }
        }
    }

    /// Waits until its maker has reported a new datastore: the next request may use
    /// it. A server that is slow to report is no reason to say that nothing was made.
    async fn reached(&self, id: DatastoreId) {
        let mut changes = self.inventory().changes();
        let reported = async {
            loop {
                changes.borrow_and_update();
                let there = {
                    let snapshot = self.inventory().read();
                    snapshot.datastores.get(&id).is_none_or(|d| {
                        let maker = d.value.sharing.maker();
                        reach::why_not(id, maker, When::Now, &snapshot).is_none()
                    })
                };
                if there || changes.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(REPORTED_WITHIN, reported).await;
    }

    pub async fn patch_datastore(
        &self,
        reference: &str,
        patch: &MetaPatch,
        expected: Option<Revision>,
    ) -> Result<DatastoreId, Problem> {
        self.commit(|snapshot, _| {
            let old = snapshot.ready_datastore(reference)?;
            unchanged(old, expected)?;
            let mut new = old.value.clone();
            let kind = (Kind::Datastore, new.id);
            let (meta, txn) =
                meta::change(kind, &snapshot.datastores, &old.value.meta, patch.into())?;
            new.meta = meta;
            Ok((new.id, txn.replace(old, &new)))
        })
        .await
    }

    /// Forgets an empty datastore; the directory stays.
    pub async fn delete_datastore(
        &self,
        reference: &str,
        expected: Option<Revision>,
    ) -> Result<(), Problem> {
        let find = |s: &super::inventory::Snapshot| s.datastore(reference).map(|d| d.value.id);
        let guard = self.guard(Kind::Datastore, find).await?;
        let preferred = self.nodes().local();
        let (datastore, host) = self
            .commit(|snapshot, _| {
                let record = snapshot.ready_datastore(reference)?;
                unchanged(record, expected)?;
                let datastore = &record.value;
                let users = snapshot.users_of_datastore(datastore.id);
                if !users.is_empty() {
                    return Err(problems::in_use("datastore", &datastore.meta.name, &users));
                }
                let txn = guard
                    .txn()
                    .require_unchanged(record)
                    .delete(keys::datastore(datastore.id))
                    .delete(Kind::Datastore.name(&datastore.meta.name));
                let host = reach::choose(&[datastore.id], preferred, snapshot).ok();
                Ok(((datastore.clone(), host), txn))
            })
            .await?;
        // It is gone: servers close it when they see that. The directory may become
        // another datastore if its marks can be taken off.
        if let Some(node) = host.and_then(|host| self.nodes().get(host).ok())
            && let Err(e) = node.discard_datastore(&datastore).await
        {
            let name = &datastore.meta.name;
            tracing::warn!(datastore = %name, why = e.0.detail, "the directory keeps its marks");
        }
        Ok(())
    }
}

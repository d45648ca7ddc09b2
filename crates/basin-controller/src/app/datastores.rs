//! Datastores.

use basin_api::datastore::DatastoreCreate;
use basin_api::reference::MetaPatch;
use basin_model::DatastoreId;
use basin_model::keys::{self, Kind};
use basin_model::task::Problem;
use basin_store::Revision;

use super::{App, nodes, problems, unchanged};
use crate::intake::{self, meta};

impl App {
    /// Makes a directory of this server a datastore.
    pub async fn create_datastore(
        &self,
        request: &DatastoreCreate,
    ) -> Result<DatastoreId, Problem> {
        let host = self.nodes().local();
        let datastore = self
            .commit(|snapshot, mint| {
                let draft = intake::datastore::create(request, host, snapshot, mint)?;
                Ok((draft.datastore, draft.txn))
            })
            .await?;
        // The record first: a directory that a crash left marked is then known,
        // and one that cannot be used is forgotten again.
        match self.nodes().get(host)?.open_datastore(&datastore).await {
            Ok(_) => Ok(datastore.id),
            Err(e) => {
                self.delete_datastore(&datastore.id.to_string(), None).await?;
                Err(nodes::refused(e))
            }
        }
    }

    pub async fn patch_datastore(
        &self,
        reference: &str,
        patch: &MetaPatch,
        expected: Option<Revision>,
    ) -> Result<DatastoreId, Problem> {
        self.commit(|snapshot, _| {
            let old = snapshot.datastore(reference)?;
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
        let (id, host) = self
            .commit(|snapshot, _| {
                let record = snapshot.datastore(reference)?;
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
                Ok(((datastore.id, datastore.host), txn))
            })
            .await?;
        self.nodes().get(host)?.close_datastore(id).await.map_err(nodes::refused)
    }
}

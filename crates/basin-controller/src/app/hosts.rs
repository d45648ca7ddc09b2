//! Servers.

use basin_api::reference::MetaPatch;
use basin_model::HostId;
use basin_model::keys::Kind;
use basin_model::task::Problem;
use basin_store::Revision;

use super::{App, unchanged};
use crate::intake::meta;

impl App {
    pub async fn patch_host(
        &self,
        reference: &str,
        patch: &MetaPatch,
        expected: Option<Revision>,
    ) -> Result<HostId, Problem> {
        self.commit(|snapshot, _| {
            let old = snapshot.host(reference)?;
            unchanged(old, expected)?;
            let mut new = old.value.clone();
            let kind = (Kind::Host, new.id);
            let (meta, txn) = meta::change(kind, &snapshot.hosts, &old.value.meta, patch.into())?;
            new.meta = meta;
            Ok((new.id, txn.replace(old, &new)))
        })
        .await
    }
}

//! Networks.

use basin_api::network::NetworkCreate;
use basin_api::reference::MetaPatch;
use basin_model::NetworkId;
use basin_model::keys::{self, Kind};
use basin_model::task::Problem;
use basin_store::Revision;

use super::{App, nodes, problems, unchanged};
use crate::intake::{self, meta};

impl App {
    /// Makes a network; servers follow by themselves.
    pub async fn create_network(&self, request: &NetworkCreate) -> Result<NetworkId, Problem> {
        if let Ok(subnet) = request.subnet.parse() {
            // Asked of this server only: of all, once there are several.
            let node = self.nodes().get(self.nodes().local())?;
            node.check_subnet(subnet).await.map_err(nodes::refused)?;
        }
        self.commit(|snapshot, mint| {
            let draft = intake::network::create(request, snapshot, mint)?;
            Ok((draft.network.id, draft.txn))
        })
        .await
    }

    pub async fn patch_network(
        &self,
        reference: &str,
        patch: &MetaPatch,
        expected: Option<Revision>,
    ) -> Result<NetworkId, Problem> {
        self.commit(|snapshot, _| {
            let old = snapshot.network(reference)?;
            unchanged(old, expected)?;
            let mut new = old.value.clone();
            let kind = (Kind::Network, new.id);
            let (meta, txn) =
                meta::change(kind, &snapshot.networks, &old.value.meta, patch.into())?;
            new.meta = meta;
            Ok((new.id, txn.replace(old, &new)))
        })
        .await
    }

    pub async fn delete_network(
        &self,
        reference: &str,
        expected: Option<Revision>,
    ) -> Result<(), Problem> {
        let guard = self.guard(Kind::Network, |s| s.network(reference).map(|n| n.value.id)).await?;
        self.commit(|snapshot, _| {
            let record = snapshot.network(reference)?;
            unchanged(record, expected)?;
            let network = &record.value;
            let users = snapshot.users_of_network(network.id);
            if !users.is_empty() {
                return Err(problems::in_use("network", &network.meta.name, &users));
            }
            let txn = guard
                .txn()
                .require_unchanged(record)
                .delete(keys::network(network.id))
                .delete(Kind::Network.name(&network.meta.name));
            let vni = network.vni.map(keys::vni);
            Ok(((), vni.into_iter().fold(txn, |txn, key| txn.delete(key))))
        })
        .await
    }
}

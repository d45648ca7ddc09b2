//! Networks.

use std::sync::Arc;

use basin_api::network::NetworkCreate;
use basin_api::reference::MetaPatch;
use basin_model::NetworkId;
use basin_model::keys::{self, Kind};
use basin_model::task::Problem;
use basin_node::NodeApi;
use basin_store::Revision;
use futures::future::join_all;
use ipnet::Ipv4Net;

use super::{App, problems, unchanged};
use crate::intake::{self, meta};

impl App {
    /// Makes a network; servers follow by themselves.
    pub async fn create_network(&self, request: &NetworkCreate) -> Result<NetworkId, Problem> {
        // A VLAN's subnet is the operator's own: servers may well reach it.
        if request.vlan.is_none()
            && let Ok(subnet) = request.subnet.parse()
        {
            self.check_subnet(subnet).await?;
        }
        self.commit(|snapshot, mint| {
            let draft = intake::network::create(request, snapshot, mint)?;
            Ok((draft.network.id, draft.txn))
        })
        .await
    }

    /// Asks every server; one that does not answer cannot object.
    async fn check_subnet(&self, subnet: Ipv4Net) -> Result<(), Problem> {
        let asked = self.nodes().all().into_iter().map(|host| {
            let ask = move |node: Arc<dyn NodeApi>| async move { node.check_subnet(subnet).await };
            self.nodes().figures(host, ask)
        });
        let unasked = ["host-unreachable", "host-untrusted", "host-no-address"];
        for answer in join_all(asked).await {
            match answer {
                Err(problem) if !unasked.contains(&problem.code.as_str()) => return Err(problem),
                _ => {}
            }
        }
        Ok(())
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
            let vlan = network.vlan().map(keys::vlan);
            let held = network.vni.map(keys::vni).into_iter().chain(vlan);
            Ok(((), held.fold(txn, |txn, key| txn.delete(key))))
        })
        .await
    }
}

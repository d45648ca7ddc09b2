//! The servers, as the controller reaches them: the own one in this process, the
//! others over the network, where their records say they are.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use basin_model::HostId;
use basin_model::host::Host;
use basin_model::task::Problem;
use basin_node::remote::{Peer, PeerAddress, Peers, RemoteNode};
use basin_node::{NodeApi, NodeError, NodeUsage};
use futures::future::join_all;

use super::inventory::Inventory;
use super::problems;

/// Where a server's API is, unless its record says otherwise.
pub const API_PORT: u16 = 7443;

/// For figures of the moment, which are not worth a longer wait.
pub const FIGURES_WITHIN: Duration = Duration::from_secs(3);

/// All servers.
#[derive(Clone)]
pub struct Nodes {
    local: HostId,
    node: Arc<dyn NodeApi>,
    others: Option<Others>,
    together: Option<Together>,
}

/// All in one process.
#[derive(Clone)]
struct Together {
    hosts: Vec<HostId>,
    nodes: Arc<dyn basin_node::Peers>,
}

#[derive(Clone)]
struct Others {
    peers: Peers,
    inventory: Inventory,
}

impl Nodes {
    /// One server that belongs to no cluster.
    pub fn single(local: HostId, node: Arc<dyn NodeApi>) -> Nodes {
        Nodes { local, node, others: None, together: None }
    }

    /// A cluster's servers, as seen from this one.
    pub fn cluster(
        local: HostId,
        node: Arc<dyn NodeApi>,
        peers: Peers,
        inventory: Inventory,
    ) -> Nodes {
        Nodes { others: Some(Others { peers, inventory }), ..Nodes::single(local, node) }
    }

    /// Several servers in one process, for tests and simulations. One that is not found
    /// does not answer.
    pub fn together(
        local: HostId,
        node: Arc<dyn NodeApi>,
        hosts: Vec<HostId>,
        nodes: Arc<dyn basin_node::Peers>,
    ) -> Nodes {
        Nodes { together: Some(Together { hosts, nodes }), ..Nodes::single(local, node) }
    }

    /// The server that this process runs on.
    pub fn local(&self) -> HostId {
        self.local
    }

    /// The server's node. Whether it can be reached is seen when it is asked.
    pub fn get(&self, host: HostId) -> Result<Arc<dyn NodeApi>, Problem> {
        if let Some(together) = &self.together {
            let silent = || problems::silent(&self.name(host), FIGURES_WITHIN);
            return together.nodes.get(host).ok_or_else(silent);
        }
        if host == self.local {
            return Ok(self.node.clone());
        }
        Ok(Arc::new(RemoteNode::new(self.peer(host)?)))
    }

    /// Another server, for requests that are its.
    pub fn peer(&self, host: HostId) -> Result<Peer, Problem> {
        let unknown = || problems::not_found("host", &host.to_string());
        let others = self.others.as_ref().ok_or_else(unknown)?;
        let at = {
            let snapshot = others.inventory.read();
            address(&snapshot.hosts.get(&host).ok_or_else(unknown)?.value)?
        };
        Ok(others.peers.peer(&at))
    }

    /// Every server there is.
    pub fn all(&self) -> Vec<HostId> {
        match &self.others {
            None => match &self.together {
                None => vec![self.local],
                Some(together) => together.hosts.clone(),
            },
            Some(others) => others.inventory.read().hosts.keys().copied().collect(),
        }
    }

    /// The figures of all servers, or why there are none, all asked at once.
    pub async fn usages(&self) -> BTreeMap<HostId, Result<NodeUsage, Problem>> {
        self.usages_of(self.all()).await
    }

    /// The figures of one server.
    pub async fn usage(&self, host: HostId) -> Result<NodeUsage, Problem> {
        self.figures(host, |node| async move { node.usage().await }).await
    }

    async fn usages_of(&self, hosts: Vec<HostId>) -> BTreeMap<HostId, Result<NodeUsage, Problem>> {
        join_all(hosts.into_iter().map(|host| async move { (host, self.usage(host).await) }))
            .await
            .into_iter()
            .collect()
    }

    /// Asks a server for something that is not worth a long wait.
    pub async fn figures<T, F>(
        &self,
        host: HostId,
        ask: impl FnOnce(Arc<dyn NodeApi>) -> F + Send,
    ) -> Result<T, Problem>
    where
        F: Future<Output = Result<T, NodeError>> + Send,
    {
        let node = self.get(host)?;
        match tokio::time::timeout(FIGURES_WITHIN, ask(node)).await {
            Ok(answer) => answer.map_err(refused),
            Err(_) => Err(problems::silent(&self.name(host), FIGURES_WITHIN)),
        }
    }

    fn name(&self, host: HostId) -> String {
        let found = self.others.as_ref().and_then(|others| {
            let snapshot = others.inventory.read();
            snapshot.hosts.get(&host).map(|h| h.value.meta.name.to_string())
        });
        found.unwrap_or_else(|| host.to_string())
    }
}

/// Where the record says that the server is.
pub fn address(host: &Host) -> Result<PeerAddress, Problem> {
    let name = host.meta.name.to_string();
    let address = host.address.ok_or_else(|| problems::no_address(&name))?;
    let address = SocketAddr::new(address, host.api_port.unwrap_or(API_PORT));
    Ok(PeerAddress { host: host.id, name, address })
}

/// A server's refusal, as it is.
pub fn refused(e: NodeError) -> Problem {
    e.0
}

//! What a data centre has from the start: its first server, a datastore and a
//! network to begin with. Made once; what an operator deleted is not made again.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use basin_model::datastore::{Datastore, DatastoreKind, DatastoreState, Sharing};
use basin_model::host::Host;
use basin_model::keys::{self, Kind};
use basin_model::network::{Network, NetworkKind, Vni};
use basin_model::{DatastoreId, HostId, Labels, Meta, Name, NetworkId};
use basin_node::NodeApi;
use basin_store::records::{self, CommitError, TxnBuilder};
use basin_store::{Store, StoreError};
use ipnet::Ipv4Net;
use jiff::Timestamp;
use tracing::{info, warn};
use uuid::Uuid;

/// Makes sure that the server's own record is there.
pub async fn ensure_host(store: &dyn Store, id: HostId, name: &Name) -> Result<(), StoreError> {
    if records::get::<Host>(store, &keys::host(id)).await?.is_some() {
        return Ok(());
    }
    let host = Host {
        id,
        meta: meta(name.clone(), ""),
        address: None,
        api_port: None,
        drain: None,
        trunks: Vec::new(),
    };
    let txn = TxnBuilder::new()
        .create(keys::host(id), &host)
        .create(Kind::Host.name(&host.meta.name), &id);
    once(txn.commit(store).await)
}

/// Makes datastore `default` in the state directory and network `default` on the
/// first free subnet, on the first start of a new store.
pub async fn ensure_defaults(
    store: &dyn Store,
    host: HostId,
    state_dir: &Path,
    node: &dyn NodeApi,
) -> Result<(), StoreError> {
    let path = state_dir.join("datastores/default");
    if store.get(&keys::bootstrapped()).await?.is_some() {
        return finish_default(store, host, path, node).await;
    }
    let default: Name =
        "default".parse().map_err(|e| StoreError::Invalid(format!("default: {e}")))?;
    let datastore = Datastore {
        id: DatastoreId::from_uuid(Uuid::now_v7()),
        meta: meta(default.clone(), "The state directory's file system"),
        sharing: Sharing::Local(host),
        kind: DatastoreKind::Dir { path: path.clone() },
        quota: None,
        overcommit_percent: Datastore::DEFAULT_OVERCOMMIT_PERCENT,
        state: DatastoreState::Preparing,
    };
    let mut txn = TxnBuilder::new()
        .create(keys::bootstrapped(), &())
        .create(keys::datastore(datastore.id), &datastore)
        .create(Kind::Datastore.name(&default), &datastore.id);
    match free_subnet(node).await {
        Some(subnet) => {
            let id = NetworkId::from_uuid(Uuid::now_v7());
            let vni = Vni::likely(id);
            let network = Network {
                id,
                meta: meta(default.clone(), "Private, behind the server's own address"),
                kind: NetworkKind::Nat { subnet, domain: "basin.internal".to_owned() },
                // The store is new: no other network has it.
                vni: Some(vni),
                mtu: None,
            };
            info!(%subnet, "network 'default' is made");
            txn = txn
                .create(keys::network(network.id), &network)
                .create(Kind::Network.name(&default), &network.id)
                .create(keys::vni(vni), &network.id);
        }
        None => info!("no subnet is free for a network 'default'; make one by hand"),
    }
    once(txn.commit(store).await)?;
    finish_default(store, host, path, node).await
}

/// Makes the directory of the default datastore, and opens it before the API is
/// there: the first request may be an import. A start that was cut off before is
/// brought to its end here.
async fn finish_default(
    store: &dyn Store,
    host: HostId,
    path: PathBuf,
    node: &dyn NodeApi,
) -> Result<(), StoreError> {
    let (datastores, _) = records::list::<Datastore>(store, &Kind::Datastore.prefix()).await?;
    let kind = DatastoreKind::Dir { path };
    let unmade = datastores.into_iter().find(|d| {
        let d = &d.value;
        d.state == DatastoreState::Preparing && d.sharing == Sharing::Local(host) && d.kind == kind
    });
    let Some(unmade) = unmade else { return Ok(()) };
    if let Err(e) = node.open_datastore(&unmade.value).await {
        warn!(error = e.0.detail, "datastore 'default' cannot be made");
        return Ok(());
    }
    let ready = Datastore { state: DatastoreState::Ready, ..unmade.value.clone() };
    once(TxnBuilder::new().replace(&unmade, &ready).commit(store).await)
}

/// The first /24 that the server does not reach already: 10.86.0.0 to 10.86.255.0.
async fn free_subnet(node: &dyn NodeApi) -> Option<Ipv4Net> {
    for third in 0..=255 {
        let Ok(subnet) = Ipv4Net::new(Ipv4Addr::new(10, 86, third, 0), 24) else { continue };
        if node.check_subnet(subnet).await.is_ok() {
            return Some(subnet);
        }
    }
    None
}

fn meta(name: Name, description: &str) -> Meta {
    Meta {
        name,
        description: description.to_owned(),
        labels: Labels::default(),
        created_at: Timestamp::now(),
    }
}

/// Somebody else having done it is as good.
fn once(result: Result<basin_store::Revision, CommitError>) -> Result<(), StoreError> {
    match result {
        Ok(_) | Err(CommitError::Refused(_)) => Ok(()),
        Err(CommitError::Store(e)) => Err(e),
    }
}

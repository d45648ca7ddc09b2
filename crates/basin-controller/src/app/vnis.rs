//! VXLAN network identifiers of networks that have none: those made before networks
//! could span servers.

use basin_model::keys::{self, Kind};
use basin_model::network::{Network, Vni};
use basin_store::records::{self, CommitError, TxnBuilder};
use basin_store::{Compare, Store, StoreError};

/// Gives every network an identifier, and `mtu` to those that have none: the largest
/// packet of a guest that fits between servers. For `basin init`; idempotent. Returns
/// how many were given.
pub async fn assign_vnis(store: &dyn Store, mtu: Option<u32>) -> Result<usize, StoreError> {
    let mut given = 0;
    let (networks, _) = records::list::<Network>(store, &Kind::Network.prefix()).await?;
    let lacks = |n: &Network| n.vni.is_none() && n.vlan().is_none();
    for listed in networks.into_iter().filter(|n| lacks(&n.value)) {
        given += usize::from(assign(store, &listed.key, mtu).await?);
    }
    Ok(given)
}

async fn assign(store: &dyn Store, key: &str, mtu: Option<u32>) -> Result<bool, StoreError> {
    let mut taken = Vec::new();
    loop {
        let Some(record) = records::get::<Network>(store, key).await? else { return Ok(false) };
        let old = &record.value;
        if old.vni.is_some() {
            return Ok(false);
        }
        let vni = Vni::first_free(Vni::likely(old.id), |vni| !taken.contains(&vni));
        let vni = vni.ok_or_else(|| StoreError::Invalid("no network identifier is free".into()))?;
        let new = Network { vni: Some(vni), mtu: old.mtu.or(mtu), ..old.clone() };
        let txn = TxnBuilder::new().replace(&record, &new).create(keys::vni(vni), &old.id);
        match txn.commit(store).await {
            Ok(_) => return Ok(true),
            Err(CommitError::Refused(Compare::Absent(_))) => taken.push(vni),
            // Somebody changed the network meanwhile: from what it is now.
            Err(CommitError::Refused(_)) => {}
            Err(CommitError::Store(e)) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use basin_model::network::NetworkKind;
    use basin_model::{Labels, Meta, NetworkId};
    use basin_store::MemStore;
    use uuid::Uuid;

    use super::*;

    async fn put(store: &MemStore, n: u128, vni: Option<Vni>) -> NetworkId {
        let id = NetworkId::from_uuid(Uuid::from_u128(n));
        let meta = Meta {
            name: format!("n{n}").parse().unwrap(),
            description: String::new(),
            labels: Labels::default(),
            created_at: jiff::Timestamp::UNIX_EPOCH,
        };
        let kind = NetworkKind::Nat { subnet: "10.1.0.0/24".parse().unwrap(), domain: "vm".into() };
        let network = Network { id, meta, kind, vni, mtu: None };
        let mut txn = TxnBuilder::new().create(keys::network(id), &network);
        if let Some(vni) = vni {
            txn = txn.create(keys::vni(vni), &id);
        }
        txn.commit(store).await.unwrap();
        id
    }

    async fn get(store: &MemStore, id: NetworkId) -> Network {
        records::get(store, &keys::network(id)).await.unwrap().unwrap().value
    }

    #[tokio::test]
    async fn networks_of_before_get_one_each_once() {
        let store = MemStore::new();
        // The first has what the second would like, and the third as well.
        let has = put(&store, 1, Vni::new(7)).await;
        let wants = put(&store, 7, None).await;
        let also = put(&store, 7 + (1 << 24), None).await;
        assert_eq!(assign_vnis(&store, Some(1400)).await.unwrap(), 2);
        let of = |n: Network| (n.vni.map(Vni::get), n.mtu);
        assert_eq!(of(get(&store, has).await), (Some(7), None));
        assert_eq!(of(get(&store, wants).await), (Some(8), Some(1400)));
        assert_eq!(of(get(&store, also).await), (Some(9), Some(1400)));
        assert_eq!(assign_vnis(&store, Some(1300)).await.unwrap(), 0);
        let held = records::get::<NetworkId>(&store, &keys::vni(Vni::new(8).unwrap())).await;
        assert_eq!(held.unwrap().unwrap().value, wants);
    }
}

//! Networks.

use basin_api::network::Network;
use basin_model::network as model;
use basin_store::records::Versioned;

use super::meta;
use crate::app::inventory::Snapshot;

pub fn network(record: &Versioned<model::Network>, snapshot: &Snapshot) -> Network {
    let network = &record.value;
    let model::NetworkKind::Nat { subnet, domain } = &network.kind;
    let nics = snapshot.vms.values().flat_map(|vm| &vm.value.spec.nics);
    Network {
        meta: meta(network.id, &network.meta, record.revision),
        kind: "nat".to_owned(),
        subnet: subnet.to_string(),
        gateway: network.gateway().to_string(),
        domain: domain.clone(),
        vni: network.vni.map(model::Vni::get),
        mtu: network.mtu,
        interfaces: nics.filter(|n| n.network == network.id).count() as u32,
    }
}

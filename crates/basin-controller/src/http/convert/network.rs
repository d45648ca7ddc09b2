//! Networks.

use basin_api::network::Network;
use basin_model::network as model;
use basin_model::vlan::VlanId;
use basin_store::records::Versioned;

use super::meta;
use crate::app::inventory::Snapshot;

pub fn network(record: &Versioned<model::Network>, snapshot: &Snapshot) -> Network {
    let network = &record.value;
    let vlan = network.vlan();
    let nics = snapshot.vms.values().flat_map(|vm| &vm.value.spec.nics);
    Network {
        meta: meta(network.id, &network.meta, record.revision),
        kind: if vlan.is_some() { "vlan" } else { "nat" }.to_owned(),
        subnet: network.subnet().to_string(),
        gateway: network.gateway().to_string(),
        service: vlan.map(|_| network.service().to_string()),
        domain: network.domain().to_owned(),
        vlan: vlan.map(VlanId::get),
        range: vlan.map(|_| network.range().to_string()),
        vni: network.vni.map(model::Vni::get),
        mtu: network.mtu,
        interfaces: nics.filter(|n| n.network == network.id).count() as u32,
    }
}

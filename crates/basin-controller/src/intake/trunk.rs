//! Pure. The interfaces by which a server has VLANs of the physical network.

use basin_api::host::TrunkSet;
use basin_model::HostId;
use basin_model::host::{Host, no_vlan};
use basin_model::network::Network;
use basin_model::task::Problem;
use basin_model::vlan::{Trunk, VlanId};
use basin_model::vm::Vm;

use super::field;
use super::reach::When;
use super::vm_patch::is_stopped;
use crate::app::inventory::Snapshot;
use crate::app::problems;

/// The host with this trunk instead of the one that it had for the same.
pub fn set(host: &Host, request: &TrunkSet) -> Result<Host, Problem> {
    let interface = field("interface", request.interface.parse())?;
    let untagged = request.untagged.map(|v| field("untagged", VlanId::try_from(v))).transpose()?;
    let mut new = host.clone();
    new.trunks.retain(|t| t.untagged != untagged);
    let trunk = Trunk { interface, untagged };
    let same = |t: &&Trunk| t.interface == trunk.interface && t.untagged.is_some();
    if let (Some(_), Some(other)) = (untagged, new.trunks.iter().find(same)) {
        let vlan = other.untagged.map_or(0, VlanId::get);
        return Err(problems::invalid(format!(
            "interface: {} of server '{}' has VLAN {vlan} without tags already, and can have no \
             other",
            trunk.interface, host.meta.name
        )));
    }
    new.trunks.push(trunk);
    new.trunks.sort_by_key(|t| t.untagged);
    Ok(new)
}

/// The host without it. Refused while a VM runs there that needs it.
pub fn unset(host: &Host, untagged: Option<u16>, snapshot: &Snapshot) -> Result<Host, Problem> {
    let untagged = untagged.map(|v| field("untagged", VlanId::try_from(v))).transpose()?;
    let mut new = host.clone();
    new.trunks.retain(|t| t.untagged != untagged);
    let lost = |network: &Network| {
        let vlan = network.vlan()?;
        let had = Trunk::of(&host.trunks, vlan).is_some();
        (had && Trunk::of(&new.trunks, vlan).is_none()).then_some(network.id)
    };
    let lost: Vec<_> = snapshot.networks.values().filter_map(|n| lost(&n.value)).collect();
    let there = |vm: &&Vm| {
        let bound = vm.migration.as_ref().is_some_and(|m| m.to == host.id);
        (bound || vm.placement.is_some_and(|p| p.host == host.id)) && !is_stopped(vm, snapshot)
    };
    let vms = snapshot.vms.values().map(|vm| &vm.value).filter(there);
    let users: Vec<String> = vms
        .filter(|vm| vm.spec.nics.iter().any(|nic| lost.contains(&nic.network)))
        .map(|vm| format!("vm '{}'", vm.meta.name))
        .collect();
    if users.is_empty() {
        return Ok(new);
    }
    Err(Problem {
        advice: "Move those VMs to other servers or shut them down first.".to_owned(),
        ..problems::in_use("trunk of server", &host.meta.name, &users)
    })
}

/// Why a server cannot have a network; none if it can. What its daemon has not looked at
/// yet is not held against it.
pub fn why_not(network: &Network, host: HostId, when: When, snapshot: &Snapshot) -> Option<String> {
    let vlan = network.vlan()?;
    let record = snapshot.hosts.get(&host)?;
    let name = &network.meta.name;
    if Trunk::of(&record.value.trunks, vlan).is_none() {
        return Some(format!(
            "network '{name}' is VLAN {vlan}, for which it has no trunk ('basin host set-trunk')"
        ));
    }
    let status = snapshot.host_statuses.get(&host)?;
    let looked = status.value.trunks.iter().map(|t| &t.trunk).eq(&record.value.trunks);
    if when == When::Ever || !looked {
        return None;
    }
    let why = no_vlan(network, &status.value.trunks)?;
    Some(format!("it cannot have network '{name}': {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        serde_json::from_value(serde_json::json!({
            "id": "0190a5f2-7c1e-7d3a-9b1f-2f6f0c9e4d11",
            "meta": {"name": "srv1", "description": "", "labels": {},
                     "created_at": "2026-01-01T00:00:00Z"},
        }))
        .unwrap()
    }

    fn wanted(interface: &str, untagged: Option<u16>) -> TrunkSet {
        TrunkSet { interface: interface.to_owned(), untagged }
    }

    #[test]
    fn one_interface_for_all_and_one_for_each_vlan_without_tags() {
        let mut host = host();
        for (interface, untagged) in
            [("eth1", None), ("eth2", Some(100)), ("eth3", Some(200)), ("eth4", None)]
        {
            host = set(&host, &wanted(interface, untagged)).unwrap();
        }
        let all: Vec<_> = host.trunks.iter().map(|t| t.interface.as_str()).collect();
        assert_eq!(all, ["eth4", "eth2", "eth3"]);
        for (interface, untagged, says) in [
            ("eth2", Some(300), "has VLAN 100"),
            ("eth5", Some(0), "untagged: 0"),
            ("eth5", Some(4095), "untagged: 4095"),
            ("a/b", None, "interface: 'a/b'"),
        ] {
            let problem = set(&host, &wanted(interface, untagged)).unwrap_err();
            assert!(problem.detail.contains(says), "{problem:?}");
        }
        let host = unset(&host, Some(100), &Snapshot::default()).unwrap();
        assert_eq!(host.trunks.len(), 2);
    }
}

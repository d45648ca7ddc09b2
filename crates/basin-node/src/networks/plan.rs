//! Pure. What this server should have: every network that it can have, with the leases
//! of every VM on it and where each is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use basin_model::host::{Host, TrunkStatus, no_vlan};
use basin_model::network::{Network, NetworkKind};
use basin_model::vlan;
use basin_model::vm::Vm;
use basin_model::{HostId, NetworkId, VmId};
use basin_net::{Lease, NetworkSpec, Overlay, Trunk, VXLAN_PORT};

/// A place that is not here and that nothing is known of.
const SOMEWHERE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

pub fn plan<'a>(
    places: &Places,
    trunks: &[TrunkStatus],
    networks: impl Iterator<Item = &'a Network>,
    vms: impl Iterator<Item = &'a Arc<Vm>>,
) -> Vec<NetworkSpec> {
    let mut leases: BTreeMap<NetworkId, BTreeMap<VmId, Vec<Lease>>> = BTreeMap::new();
    for vm in vms {
        let (at, to) = places.whereabouts(vm);
        for nic in &vm.spec.nics {
            let mine = leases.entry(nic.network).or_default().entry(vm.id).or_default();
            let name = lease_name(vm.meta.name.as_str(), mine.len());
            mine.push(Lease { mac: nic.mac, address: nic.address, name, at, to });
        }
    }
    networks
        // Nothing of a VLAN is made where no trunk is.
        .filter(|network| network.vlan().is_none() || !trunks.is_empty())
        .map(|network| {
            let leases = leases.remove(&network.id).into_iter().flat_map(BTreeMap::into_values);
            // A lease outside the subnet would make the DHCP server refuse them all.
            let fits = |l: &Lease| network.assignable(l.address);
            let mut leases: Vec<Lease> = leases.flatten().filter(fits).collect();
            leases.sort();
            let mut seen = BTreeSet::new();
            leases.retain(|l| seen.insert(l.mac));
            NetworkSpec {
                id: network.id,
                subnet: network.subnet(),
                gateway: network.service(),
                domain: network.domain().to_owned(),
                leases,
                overlay: places.overlay(network),
                trunk: places.trunk(network, trunks),
            }
        })
        .collect()
}

/// The networks that cannot be on this server, and why.
pub fn absent<'a>(
    networks: impl Iterator<Item = &'a Network>,
    trunks: &[TrunkStatus],
) -> BTreeMap<NetworkId, String> {
    networks.filter_map(|n| Some((n.id, no_vlan(n, trunks)?))).collect()
}

/// Whether an interface's tap on this server carries frames, now or once it arrives.
pub fn usable_here(lease: &Lease, local: Option<Ipv4Addr>) -> bool {
    lease.at.is_none() || lease.at == local || (lease.to.is_some() && lease.to == local)
}

/// The interfaces by which this server has VLANs.
pub fn trunks<'a>(own: HostId, mut hosts: impl Iterator<Item = &'a Host>) -> &'a [vlan::Trunk] {
    hosts.find(|host| host.id == own).map_or(&[], |host| &host.trunks)
}

/// This server's address between servers.
pub fn local<'a>(own: HostId, mut hosts: impl Iterator<Item = &'a Host>) -> Option<Ipv4Addr> {
    hosts.find(|host| host.id == own).and_then(address).map(|(_, local)| local)
}

/// Networks span servers over IPv4.
fn address(host: &Host) -> Option<(HostId, Ipv4Addr)> {
    match host.address? {
        IpAddr::V4(v4) => Some((host.id, v4)),
        IpAddr::V6(_) => None,
    }
}

/// Where servers are, seen from this one.
pub struct Places {
    own: HostId,
    addresses: BTreeMap<HostId, Ipv4Addr>,
}

impl Places {
    pub fn new<'a>(own: HostId, hosts: impl Iterator<Item = &'a Host>) -> Places {
        Places { own, addresses: hosts.filter_map(address).collect() }
    }

    /// Where a trunk does not carry the network, those of its guests that are here keep
    /// each other.
    fn trunk(&self, network: &Network, trunks: &[TrunkStatus]) -> Option<Trunk> {
        let NetworkKind::Vlan { vlan, gateway, .. } = &network.kind else { return None };
        let carries = vlan::Trunk::of(trunks, *vlan).map(|found| &found.trunk);
        let carries = carries.filter(|_| no_vlan(network, trunks).is_none());
        Some(Trunk {
            vlan: *vlan,
            device: carries.map(|t| t.interface.clone()),
            tagged: carries.is_none_or(|t| t.untagged.is_none()),
            router: *gateway,
            mtu: network.mtu.unwrap_or(Network::VLAN_MTU),
            local: self.addresses.get(&self.own).copied(),
        })
    }

    fn overlay(&self, network: &Network) -> Option<Overlay> {
        if network.vlan().is_some() {
            return None;
        }
        let local = *self.addresses.get(&self.own)?;
        let others = self.addresses.iter().filter(|(id, _)| **id != self.own);
        Some(Overlay {
            vni: network.vni?,
            local,
            port: VXLAN_PORT,
            peers: others.map(|(_, a)| *a).filter(|a| *a != local).collect(),
            mtu: network.mtu.unwrap_or(Network::OVERLAY_MTU),
        })
    }

    /// Where a VM's interfaces are, and where it moves to.
    fn whereabouts(&self, vm: &Vm) -> (Option<Ipv4Addr>, Option<Ipv4Addr>) {
        let place = |host: HostId| self.addresses.get(&host).copied().unwrap_or(SOMEWHERE);
        let at = vm.placement.map(|p| p.host).filter(|host| *host != self.own).map(place);
        (at, bound_for(vm).map(place))
    }
}

/// The server that a VM is moving to while it runs.
fn bound_for(vm: &Vm) -> Option<HostId> {
    vm.migration.as_ref().map(|migration| migration.to)
}

/// A VM's second interface on the same network is `NAME-2`, and so on.
fn lease_name(vm: &str, before: usize) -> String {
    if before == 0 {
        return vm.to_owned();
    }
    let suffix = format!("-{}", before + 1);
    let head = &vm[..vm.len().min(63 - suffix.len())];
    format!("{}{suffix}", head.trim_end_matches('-'))
}

#[cfg(test)]
mod tests {
    use basin_model::network::Vni;
    use basin_model::vm::{FailurePolicy, Placement, Power, Run};
    use basin_model::{Bytes, Generation, Labels, MacAddr, Meta, NicId, Vcpus};
    use serde_json::json;
    use uuid::Uuid;

    use super::*;

    fn meta(name: &str) -> Meta {
        Meta {
            name: name.parse().unwrap(),
            description: String::new(),
            labels: Labels::default(),
            created_at: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    fn host(n: u8) -> HostId {
        HostId::from_uuid(Uuid::from_u128(u128::from(n)))
    }

    fn place(n: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, n)
    }

    fn hosts(addresses: bool) -> Vec<Host> {
        let one = |n: u8| {
            let mut host = json!({"id": host(n), "meta": meta(&format!("h{n}"))});
            if addresses {
                host["address"] = json!(place(n));
            }
            serde_json::from_value(host).unwrap()
        };
        (1..=3).map(one).collect()
    }

    fn network(vni: Option<u32>) -> Network {
        Network {
            id: NetworkId::from_uuid(Uuid::from_u128(7)),
            meta: meta("n"),
            kind: NetworkKind::Nat { subnet: "10.1.0.0/16".parse().unwrap(), domain: "vm".into() },
            vni: vni.and_then(Vni::new),
            mtu: None,
        }
    }

    fn vm(n: u8, at: Option<u8>) -> Arc<Vm> {
        let nic = json!({
            "id": NicId::from_uuid(Uuid::from_u128(u128::from(n))),
            "network": network(None).id,
            "mac": MacAddr::from_random([0, 0, n]),
            "address": Ipv4Addr::new(10, 1, 0, n + 1),
        });
        let placement = at.map(|h| Placement { host: host(h), generation: Generation(1) });
        let vm = json!({
            "id": VmId::from_uuid(Uuid::from_u128(u128::from(n))),
            "meta": meta(&format!("vm{n}")),
            "spec": {
                "vcpus": Vcpus(1),
                "memory": Bytes::mib(64),
                "nics": [nic],
                "policy": FailurePolicy::default(),
            },
            "run": Run { power: Power::Running, epoch: 1, resets: 0 },
            "placement": placement,
        });
        Arc::new(serde_json::from_value(vm).unwrap())
    }

    fn spec(own: u8, vni: Option<u32>, addresses: bool, vms: &[Arc<Vm>]) -> NetworkSpec {
        let (network, hosts) = (network(vni), hosts(addresses));
        let places = Places::new(host(own), hosts.iter());
        plan(&places, &[], [&network].into_iter(), vms.iter()).pop().unwrap()
    }

    #[test]
    fn each_server_sees_the_others_from_where_it_is() {
        let vms = [vm(1, Some(1)), vm(2, Some(2)), vm(3, None), vm(4, Some(9))];
        let at = |own: u8| {
            let spec = spec(own, Some(5), true, &vms);
            let overlay = spec.overlay.unwrap();
            assert_eq!((overlay.local, overlay.vni.get(), overlay.mtu), (place(own), 5, 1450));
            assert!(overlay.peers.len() == 2 && !overlay.peers.contains(&place(own)));
            spec.leases.iter().map(|l| l.at).collect::<Vec<_>>()
        };
        assert_eq!(at(1), [None, Some(place(2)), None, Some(SOMEWHERE)]);
        assert_eq!(at(2), [Some(place(1)), None, None, Some(SOMEWHERE)]);
    }

    #[test]
    fn a_server_alone_has_no_overlay() {
        for (vni, addresses) in [(None, true), (Some(5), false), (None, false)] {
            assert_eq!(spec(1, vni, addresses, &[vm(1, Some(1))]).overlay, None);
        }
    }

    #[test]
    fn a_vlan_is_where_a_trunk_is() {
        let mut network = network(None);
        network.kind = serde_json::from_value(json!({
            "kind": "vlan", "vlan": 100, "subnet": "10.1.0.0/16", "gateway": "10.1.0.1",
            "service": "10.1.255.254", "range": "10.1.0.3-10.1.0.9", "domain": "vm",
        }))
        .unwrap();
        let (mut hosts, vms) = (hosts(true), [vm(1, Some(1)), vm(2, Some(2))]);
        hosts[1].trunks = vec![vlan::Trunk { interface: "eth1".parse().unwrap(), untagged: None }];
        assert!(trunks(host(1), hosts.iter()).is_empty());
        let found = |mtu| {
            let trunk = trunks(host(2), hosts.iter())[0].clone();
            vec![TrunkStatus { trunk, mtu: Some(mtu), problem: None }]
        };
        let places = Places::new(host(2), hosts.iter());
        let specs =
            |found: &[TrunkStatus]| plan(&places, found, [&network].into_iter(), vms.iter()).pop();
        assert_eq!(specs(&[]), None);
        let small = specs(&found(1499)).unwrap().trunk.unwrap();
        assert_eq!(small.device, None);
        let why = absent([&network].into_iter(), &found(1499));
        assert!(why[&network.id].contains("eth1 carries 1499"), "{why:?}");
        let spec = specs(&found(1500)).unwrap();
        assert_eq!((spec.gateway, spec.overlay), (Ipv4Addr::new(10, 1, 255, 254), None));
        // The first has an address that is not of the range.
        assert_eq!(spec.leases.iter().map(|l| l.at).collect::<Vec<_>>(), [None]);
        let trunk = spec.trunk.unwrap();
        assert_eq!((trunk.local, trunk.mtu), (Some(place(2)), 1500));
        assert_eq!(trunk.router, Ipv4Addr::new(10, 1, 0, 1));
        assert_eq!(trunk.device.unwrap().as_str(), "eth1");
    }

    #[test]
    fn a_tap_is_of_use_where_its_machine_is_or_goes() {
        let check = |at: Option<u8>, to: Option<u8>, expect: bool| {
            let mut lease = spec(1, Some(5), true, &[vm(1, None)]).leases.pop().unwrap();
            (lease.at, lease.to) = (at.map(place), to.map(place));
            assert_eq!(usable_here(&lease, Some(place(1))), expect, "{at:?} {to:?}");
        };
        check(None, None, true);
        check(None, Some(2), true);
        check(Some(2), None, false);
        check(Some(2), Some(1), true);
        check(Some(2), Some(3), false);
    }

    #[test]
    fn further_interfaces_have_names_of_their_own() {
        assert_eq!(lease_name("web", 0), "web");
        assert_eq!(lease_name("web", 1), "web-2");
        let long = format!("{}-", "x".repeat(60));
        assert_eq!(lease_name(&format!("{long}ab"), 1).len(), 62);
        assert!(lease_name(&"x".repeat(63), 11).len() <= 63);
    }
}

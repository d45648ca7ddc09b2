//! Pure. New networks that are VLANs of the physical network.

use std::net::Ipv4Addr;

use basin_api::network::NetworkCreate;
use basin_model::host::HostStatus;
use basin_model::network::{Network, NetworkKind};
use basin_model::task::Problem;
use basin_model::vlan::{AddressRange, VlanId};
use basin_store::records::Versioned;
use ipnet::Ipv4Net;

use super::field;
use super::network::{MAX_MTU, MIN_MTU};
use crate::app::inventory::Snapshot;
use crate::app::problems;

/// None: it is to be no VLAN.
pub fn kind(
    request: &NetworkCreate,
    subnet: Ipv4Net,
    domain: &str,
    snapshot: &Snapshot,
) -> Result<Option<NetworkKind>, Problem> {
    let Some(vlan) = request.vlan else {
        let of_vlans = [
            ("gateway", &request.gateway),
            ("service", &request.service),
            ("range", &request.range),
        ];
        return match of_vlans.into_iter().find(|(_, value)| value.is_some()) {
            None => Ok(None),
            Some((name, _)) => Err(problems::invalid(format!(
                "{name}: only a network that is a VLAN has one of its own; say which (vlan)"
            ))),
        };
    };
    let vlan = field("vlan", VlanId::try_from(vlan))?;
    if let Some(other) = snapshot.networks.values().find(|n| n.value.vlan() == Some(vlan)) {
        let name = &other.value.meta.name;
        return Err(problems::invalid(format!("vlan: network '{name}' is VLAN {vlan} already")));
    }
    let gateway = request.gateway.as_ref().ok_or_else(|| {
        problems::invalid("gateway: a VLAN needs the address of the physical network's router")
    })?;
    let gateway = address("gateway", gateway, subnet)?;
    let service = match &request.service {
        Some(text) => address("service", text, subnet)?,
        None => Network::default_service(subnet, gateway),
    };
    if service == gateway {
        return Err(problems::invalid(format!(
            "service: {service} is the gateway's, which answers on the physical network; Basin \
             needs an address that nobody else has"
        )));
    }
    let of_host = |h: &&Versioned<basin_model::host::Host>| {
        h.value.address == Some(std::net::IpAddr::V4(service))
    };
    if let Some(host) = snapshot.hosts.values().find(of_host) {
        let name = &host.value.meta.name;
        return Err(problems::invalid(format!(
            "service: {service} is the address of server '{name}'; choose one that nobody has"
        )));
    }
    let whole = AddressRange::of(subnet);
    let range = match &request.range {
        Some(text) => field("range", text.parse::<AddressRange>())?,
        None => whole,
    };
    if !whole.contains(range.first()) || !whole.contains(range.last()) {
        return Err(problems::invalid(format!(
            "range: {range} is not inside {whole}, the addresses that machines of {subnet} may \
             have"
        )));
    }
    let domain = domain.to_owned();
    let kind = NetworkKind::Vlan { vlan, subnet, gateway, service, range, domain };
    Ok(Some(kind))
}

fn address(name: &str, text: &str, subnet: Ipv4Net) -> Result<Ipv4Addr, Problem> {
    let address: Ipv4Addr = field(name, text.parse())?;
    if AddressRange::of(subnet).contains(address) {
        return Ok(address);
    }
    Err(problems::invalid(format!(
        "{name}: {address} is not an address that a machine of {subnet} may have"
    )))
}

/// Fixed for the network's life, as that of other networks. Servers that carry less do
/// not get its VMs, and say so.
pub fn mtu(wanted: Option<u32>, snapshot: &Snapshot) -> Result<Option<u32>, Problem> {
    if let Some(mtu) = wanted {
        if (MIN_MTU..=MAX_MTU).contains(&mtu) {
            return Ok(Some(mtu));
        }
        return Err(problems::invalid(format!("mtu: {mtu} is not of {MIN_MTU} to {MAX_MTU}")));
    }
    let trunks =
        |s: &Versioned<HostStatus>| s.value.trunks.iter().filter_map(|t| t.mtu).collect::<Vec<_>>();
    let least = snapshot.host_statuses.values().flat_map(trunks).min();
    Ok(Some(least.unwrap_or(Network::VLAN_MTU).clamp(MIN_MTU, Network::VLAN_MTU)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(change: serde_json::Value) -> NetworkCreate {
        let mut all = serde_json::json!({
            "name": "n", "subnet": "10.20.0.0/24", "vlan": 100, "gateway": "10.20.0.1",
        });
        for (key, value) in change.as_object().unwrap() {
            all[key] = value.clone();
        }
        serde_json::from_value(all).unwrap()
    }

    fn made(change: serde_json::Value) -> Result<Option<NetworkKind>, Problem> {
        let request = request(change);
        let subnet = request.subnet.parse().unwrap();
        kind(&request, subnet, "lab.internal", &Snapshot::default())
    }

    #[test]
    fn what_is_not_said_follows_from_the_subnet() {
        let check = |change, expect: (&str, &str)| match made(change).unwrap() {
            Some(NetworkKind::Vlan { service, range, .. }) => {
                assert_eq!((&*service.to_string(), &*range.to_string()), expect);
            }
            other => panic!("{other:?}"),
        };
        let whole = "10.20.0.1-10.20.0.254";
        check(serde_json::json!({}), ("10.20.0.254", whole));
        check(serde_json::json!({"gateway": "10.20.0.254"}), ("10.20.0.253", whole));
        check(
            serde_json::json!({"service": "10.20.0.9", "range": "10.20.0.10-10.20.0.20"}),
            ("10.20.0.9", "10.20.0.10-10.20.0.20"),
        );
        assert_eq!(made(serde_json::json!({"vlan": null, "gateway": null})), Ok(None));
    }

    #[test]
    fn what_cannot_be_says_which_field_and_why() {
        for (change, says) in [
            (serde_json::json!({"vlan": 0}), "vlan: 0 is not of 1 to 4094"),
            (serde_json::json!({"vlan": 4095}), "vlan: 4095 is not of 1 to 4094"),
            (serde_json::json!({"gateway": null}), "gateway: a VLAN needs"),
            (serde_json::json!({"gateway": "10.21.0.1"}), "gateway: 10.21.0.1 is not"),
            (serde_json::json!({"gateway": "10.20.0.255"}), "gateway: 10.20.0.255 is not"),
            (serde_json::json!({"service": "10.20.0.1"}), "service: 10.20.0.1 is the gateway's"),
            (serde_json::json!({"service": "10.20.0.0"}), "service: 10.20.0.0 is not"),
            (serde_json::json!({"range": "10.20.0.9"}), "range: '10.20.0.9' is not"),
            (serde_json::json!({"range": "10.20.0.9-10.20.1.9"}), "is not inside"),
            (serde_json::json!({"range": "10.20.0.9-10.20.0.8"}), "ends before it begins"),
            (serde_json::json!({"vlan": null}), "gateway: only a network that is a VLAN"),
        ] {
            let problem = made(change).unwrap_err();
            assert!(problem.detail.contains(says), "{says}: {problem:?}");
        }
        let subnet = "10.20.0.0/24".parse().unwrap();
        let mut snapshot = Snapshot::default();
        let network = serde_json::json!({
            "id": "0190a5f2-7c1e-7d3a-9b1f-2f6f0c9e4d11",
            "meta": {"name": "first", "description": "", "labels": {},
                     "created_at": "2026-01-01T00:00:00Z"},
            "kind": made(serde_json::json!({})).unwrap().unwrap(),
        });
        let network: Network = serde_json::from_value(network).unwrap();
        let record = Versioned {
            key: basin_model::keys::network(network.id),
            value: network,
            revision: basin_store::Revision(1),
            unknown: Default::default(),
        };
        snapshot.networks.insert(record.value.id, record);
        let other = request(serde_json::json!({}));
        let problem = kind(&other, subnet, "x", &snapshot).unwrap_err();
        assert!(problem.detail.contains("network 'first' is VLAN 100 already"), "{problem:?}");
        assert!(mtu(Some(100), &snapshot).is_err());
        assert_eq!(mtu(None, &snapshot), Ok(Some(1500)));
    }
}

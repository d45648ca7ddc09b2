//! Pure. New networks.

use std::collections::BTreeSet;

use basin_api::network::NetworkCreate;
use basin_model::NetworkId;
use basin_model::host::HostStatus;
use basin_model::keys::{self, Kind};
use basin_model::network::{Network, NetworkKind, Vni};
use basin_model::task::Problem;
use basin_store::records::{TxnBuilder, Versioned};
use ipnet::Ipv4Net;

use super::{Mint, field, meta, vlan};
use crate::app::inventory::Snapshot;
use crate::app::problems;

/// A network to make.
pub struct Draft {
    pub network: Network,
    pub txn: TxnBuilder,
}

pub fn create(
    request: &NetworkCreate,
    snapshot: &Snapshot,
    mint: &mut Mint<'_>,
) -> Result<Draft, Problem> {
    let meta =
        meta::new(&snapshot.networks, &request.name, &request.description, &request.labels, mint)?;
    let subnet: Ipv4Net = field("subnet", request.subnet.parse())?;
    let id = NetworkId::from_uuid(mint.uuid());
    let domain = request.domain.clone().unwrap_or_else(|| format!("{}.internal", meta.name));
    check_subnet(subnet)?;
    check_domain(&domain)?;
    if let Some(other) = snapshot.networks.values().map(|n| &n.value).find(|n| overlap(n, subnet)) {
        return Err(overlaps(subnet, &other.meta.name, other.subnet()));
    }
    let (kind, vni, mtu) = match vlan::kind(request, subnet, &domain, snapshot)? {
        Some(kind) => (kind, None, vlan::mtu(request.mtu, snapshot)?),
        None => {
            let kind = NetworkKind::Nat { subnet, domain };
            (kind, Some(free_vni(id, snapshot)?), mtu(request.mtu, snapshot)?)
        }
    };
    let network = Network { id, meta, kind, vni, mtu };
    // Networks are few: any two that are made at once are made one after the other.
    let txn = TxnBuilder::new()
        .create(Kind::Network.name(&network.meta.name), &id)
        .create(keys::network(id), &network);
    let held = vni.map(keys::vni).into_iter().chain(network.vlan().map(keys::vlan));
    Ok(Draft { network, txn: held.fold(txn, |txn, key| txn.create(key, &id)) })
}

fn free_vni(id: NetworkId, snapshot: &Snapshot) -> Result<Vni, Problem> {
    let taken: BTreeSet<Vni> = snapshot.networks.values().filter_map(|n| n.value.vni).collect();
    Vni::first_free(Vni::likely(id), |vni| !taken.contains(&vni))
        .ok_or_else(|| problems::invalid("16777215 networks are all there can be"))
}

/// Fixed for the network's life: guests are told once. So it is what all servers of
/// the day carry, or less on request; outside a cluster each start decides.
fn mtu(wanted: Option<u32>, snapshot: &Snapshot) -> Result<Option<u32>, Problem> {
    let status = |s: &Versioned<HostStatus>| Some((s.value.overlay_mtu?, s.value.host));
    let least = snapshot.host_statuses.values().filter_map(status).min();
    let Some(mtu) = wanted else {
        return Ok(least.map(|(most, _)| most.min(Network::OVERLAY_MTU)));
    };
    if !(MIN_MTU..=MAX_MTU).contains(&mtu) {
        return Err(problems::invalid(format!("mtu: {mtu} is not of {MIN_MTU} to {MAX_MTU}")));
    }
    match least {
        Some((most, host)) if most < mtu => {
            let name = snapshot.hosts.get(&host).map(|h| h.value.meta.name.to_string());
            let name = name.unwrap_or_else(|| host.to_string());
            Err(problems::invalid(format!(
                "mtu: server '{name}' carries {most} between servers, which is less than {mtu}; \
                 raise the MTU of its interface to {} or choose less",
                mtu + Network::VXLAN_OVERHEAD
            )))
        }
        _ => Ok(Some(mtu)),
    }
}

/// What every IPv4 host must take, and what fits into the largest UDP packet.
pub(super) const MIN_MTU: u32 = 576;
pub(super) const MAX_MTU: u32 = 65_535 - Network::VXLAN_OVERHEAD;

fn overlap(network: &Network, subnet: Ipv4Net) -> bool {
    let other = network.subnet();
    other.contains(&subnet) || subnet.contains(&other)
}

fn overlaps(subnet: Ipv4Net, name: &basin_model::Name, with: Ipv4Net) -> Problem {
    Problem {
        code: "subnet-overlap".to_owned(),
        detail: format!("Subnet {subnet} overlaps {with} of network '{name}'."),
        advice: "Choose another subnet.".to_owned(),
    }
}

fn check_subnet(subnet: Ipv4Net) -> Result<(), Problem> {
    let address = subnet.addr();
    if subnet.network() != address {
        let right = subnet.trunc();
        return Err(problems::invalid(format!(
            "subnet: {subnet} has host bits set; did you mean {right}?"
        )));
    }
    if !(8..=29).contains(&subnet.prefix_len()) {
        return Err(problems::invalid(format!("subnet: {subnet} is not of /8 to /29")));
    }
    if address.is_loopback()
        || address.is_multicast()
        || address.is_unspecified()
        || address.is_link_local()
        || address.is_broadcast()
        || address.octets()[0] >= 240
    {
        return Err(problems::invalid(format!("subnet: hosts cannot have addresses of {subnet}")));
    }
    Ok(())
}

fn check_domain(domain: &str) -> Result<(), Problem> {
    let label = |l: &str| l.parse::<basin_model::Name>().is_ok();
    if domain.len() <= 180 && domain.split('.').all(label) {
        return Ok(());
    }
    Err(problems::invalid(format!("domain: '{domain}' is not a DNS domain such as lab.internal")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(subnet: &str, expect: bool) {
        let parsed: Ipv4Net = subnet.parse().unwrap();
        assert_eq!(check_subnet(parsed).is_ok(), expect, "{subnet}");
    }

    #[test]
    fn subnets_are_of_hosts_and_of_a_useful_size() {
        check("10.80.0.0/24", true);
        check("192.168.7.0/29", true);
        for bad in [
            "10.80.0.1/24",
            "10.0.0.0/7",
            "10.0.0.0/30",
            "127.0.0.0/24",
            "224.0.0.0/24",
            "169.254.0.0/24",
            "250.0.0.0/24",
        ] {
            check(bad, false);
        }
    }

    #[test]
    fn domains_are_dns_names() {
        assert!(check_domain("lab.internal").is_ok());
        for bad in ["", ".", "lab..internal", "Lab", "a b", "-a.b"] {
            assert!(check_domain(bad).is_err(), "{bad}");
        }
    }
}

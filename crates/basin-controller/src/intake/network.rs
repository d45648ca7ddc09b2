//! Pure. New networks.

use basin_api::network::NetworkCreate;
use basin_model::NetworkId;
use basin_model::keys::{self, Kind};
use basin_model::network::{Network, NetworkKind};
use basin_model::task::Problem;
use basin_store::records::TxnBuilder;
use ipnet::Ipv4Net;

use super::{Mint, field, meta};
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
    let network = Network { id, meta, kind: NetworkKind::Nat { subnet, domain } };
    // Networks are few: any two that are made at once are made one after the other.
    let txn = TxnBuilder::new()
        .create(Kind::Network.name(&network.meta.name), &id)
        .create(keys::network(id), &network);
    Ok(Draft { network, txn })
}

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

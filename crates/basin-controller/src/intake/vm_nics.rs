//! Pure. Network interfaces of a new VM, and the addresses that stay with them.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use basin_api::vm::NewNic;
use basin_model::keys::{self, Kind};
use basin_model::network::Network;
use basin_model::task::Problem;
use basin_model::vm::Nic;
use basin_model::{MacAddr, NetworkId, NicId};
use basin_store::records::TxnBuilder;

use super::{Mint, Uses, field};
use crate::app::inventory::Snapshot;
use crate::app::problems;

const NICS_MAX: usize = 8;

/// Interfaces with their MAC and IPv4 addresses, and the keys that reserve them.
pub(super) fn draft(
    wanted: &[NewNic],
    snapshot: &Snapshot,
    uses: &mut Uses,
    mint: &mut Mint<'_>,
) -> Result<(Vec<Nic>, TxnBuilder), Problem> {
    if wanted.len() > NICS_MAX {
        return Err(problems::invalid(format!("nics: a VM has at most {NICS_MAX}")));
    }
    let mut taken = Taken::of(snapshot);
    let mut nics = Vec::new();
    let mut txn = TxnBuilder::new();
    for nic in wanted {
        let network = snapshot.network(&nic.network)?;
        uses.hold(Kind::Network, network.value.id, network);
        let network = &network.value;
        let mac = match &nic.mac {
            Some(text) => {
                let mac: MacAddr = field("mac", text.parse())?;
                if taken.macs.contains(&mac) {
                    return Err(problems::mac_taken(mac));
                }
                mac
            }
            None => free_mac(&taken.macs, mint),
        };
        let address = match &nic.address {
            Some(text) => chosen_address(text, network, &taken)?,
            None => free_address(network, &taken)?,
        };
        taken.macs.insert(mac);
        taken.addresses.insert((network.id, address));
        let id = NicId::from_uuid(mint.uuid());
        txn = txn.create(keys::mac(mac), &id).create(keys::address(network.id, address), &id);
        nics.push(Nic { id, network: network.id, mac, address });
    }
    Ok((nics, txn))
}

/// What the interfaces that there are hold.
struct Taken {
    macs: BTreeSet<MacAddr>,
    addresses: BTreeSet<(NetworkId, Ipv4Addr)>,
}

impl Taken {
    fn of(snapshot: &Snapshot) -> Taken {
        let nics = || snapshot.vms.values().flat_map(|vm| &vm.value.spec.nics);
        Taken {
            macs: nics().map(|n| n.mac).collect(),
            addresses: nics().map(|n| (n.network, n.address)).collect(),
        }
    }
}

fn free_mac(taken: &BTreeSet<MacAddr>, mint: &mut Mint<'_>) -> MacAddr {
    loop {
        let mac = mint.mac();
        if !taken.contains(&mac) {
            return mac;
        }
    }
}

fn chosen_address(text: &str, network: &Network, taken: &Taken) -> Result<Ipv4Addr, Problem> {
    let address: Ipv4Addr = field("address", text.parse())?;
    if !network.assignable(address) {
        return Err(problems::invalid(format!(
            "address: {address} is not one that network '{}' ({}, gateway {}) can give",
            network.meta.name,
            network.subnet(),
            network.gateway()
        )));
    }
    if taken.addresses.contains(&(network.id, address)) {
        return Err(problems::address_taken(address, &network.meta.name));
    }
    Ok(address)
}

fn free_address(network: &Network, taken: &Taken) -> Result<Ipv4Addr, Problem> {
    network
        .range()
        .addresses()
        .filter(|a| network.assignable(*a))
        .find(|a| !taken.addresses.contains(&(network.id, *a)))
        .ok_or_else(|| problems::network_full(&network.meta.name))
}

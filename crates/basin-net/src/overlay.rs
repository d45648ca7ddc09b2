//! Pure. A network that spans servers: where frames for each interface go, whom they
//! may come from, and what a tap does while its machine moves.
//!
//! On its bridge a server knows its own guests; all else is for the VXLAN port. The
//! port knows which server each other guest is on. Both kinds of entry are such that
//! no frame moves them, except those of a machine that is moving: QEMU announces the
//! guest from its new server, and that frame moves them in every kernel on its way,
//! before any daemon has heard of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use basin_model::MacAddr;

use crate::fabric::{Lease, NetError, NetworkSpec, Overlay};
use crate::state::{Entry, FLOOD, Forward, Link, Observed, PortSettings};

/// Where an interface is, seen from this server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stance {
    Here,
    /// Here, and its machine moves to another server.
    Leaving,
    /// On another server, and its machine moves here.
    Arriving,
    Elsewhere,
}

impl Stance {
    /// `local` is this server's address between servers, if it has one.
    pub fn of(lease: &Lease, local: Option<Ipv4Addr>) -> Stance {
        let Some(local) = local else { return Stance::Here };
        let other = |place: Option<Ipv4Addr>| place.is_some_and(|p| p != local);
        match (other(lease.at), lease.to) {
            (false, to) if other(to) => Stance::Leaving,
            (false, _) => Stance::Here,
            (true, Some(to)) if to == local => Stance::Arriving,
            (true, _) => Stance::Elsewhere,
        }
    }

    /// Of an interface of this MAC; one that has no lease (any more) is here.
    pub fn of_mac(network: &NetworkSpec, mac: MacAddr) -> Stance {
        // Accepted networks have their leases sorted, by MAC first.
        let found = network.leases.binary_search_by_key(&mac, |l| l.mac);
        let lease = found.ok().and_then(|i| network.leases.get(i));
        lease.map_or(Stance::Here, |l| Stance::of(l, network.local()))
    }

    /// Whether its tap here may carry what the guest sends.
    pub fn may_speak(self) -> bool {
        self != Stance::Elsewhere
    }

    pub fn port(self) -> PortSettings {
        match self {
            Stance::Arriving => PortSettings::ARRIVING,
            _ => PortSettings::GUEST,
        }
    }

    /// What the bridge must know of the guest's address at its tap. None: nothing by us.
    pub fn entry(self) -> Option<Entry> {
        match self {
            Stance::Here => Some(Entry::Sticky),
            Stance::Leaving => Some(Entry::Fixed),
            Stance::Arriving | Stance::Elsewhere => None,
        }
    }
}

/// Interfaces that frames from other servers may come from.
pub fn heard(network: &NetworkSpec) -> BTreeSet<(MacAddr, Ipv4Addr)> {
    let stance = |l: &&Lease| Stance::of(l, network.local()) != Stance::Here;
    network.leases.iter().filter(stance).map(|l| (l.mac, l.address)).collect()
}

/// Changes to what a VXLAN port knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// First; replaces what is known of the same address, except of [`FLOOD`].
    pub set: BTreeSet<Forward>,
    pub remove: BTreeSet<Forward>,
}

impl Change {
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.remove.is_empty()
    }
}

/// What to change so that frames go where `network`'s interfaces are.
pub fn change(network: &NetworkSpec, overlay: &Overlay, found: &BTreeSet<Forward>) -> Change {
    let mut change = Change::default();
    // What is for all goes to servers with guests of the network, not to every server.
    let mut flood = BTreeSet::new();
    let mut known: BTreeMap<MacAddr, (&Lease, Stance)> = BTreeMap::new();
    for lease in &network.leases {
        flood.extend([lease.at, lease.to].into_iter().flatten());
        known.insert(lease.mac, (lease, Stance::of(lease, Some(overlay.local))));
    }
    let of: BTreeMap<MacAddr, &Forward> =
        found.iter().filter(|f| f.mac != FLOOD).map(|f| (f.mac, f)).collect();
    for (lease, stance) in known.values() {
        let Some(at) = lease.at.filter(|at| overlay.peers.contains(at)) else { continue };
        let moving = lease.to.is_some() && *stance != Stance::Leaving;
        let right = |f: &Forward| match moving {
            // Where it was learned to be is newer than what the store says.
            true => !f.fixed && overlay.peers.contains(&f.to),
            false => f.fixed && f.to == at,
        };
        if matches!(stance, Stance::Arriving | Stance::Elsewhere)
            && !of.get(&lease.mac).is_some_and(|f| right(f))
        {
            change.set.insert(Forward { mac: lease.mac, to: at, fixed: !moving });
        }
    }
    for to in flood.intersection(&overlay.peers) {
        let forward = Forward { mac: FLOOD, to: *to, fixed: true };
        if !found.contains(&forward) {
            change.set.insert(forward);
        }
    }
    for forward in found {
        let stays = match known.get(&forward.mac) {
            _ if forward.mac == FLOOD => {
                flood.contains(&forward.to) && overlay.peers.contains(&forward.to)
            }
            None => false,
            Some((_, Stance::Here)) => false,
            // Learned of its new place; or of the old one, which the announcement moves.
            Some((_, Stance::Leaving)) => !forward.fixed,
            Some((lease, _)) => lease.at.is_some_and(|at| overlay.peers.contains(&at)),
        };
        if !stays {
            change.remove.insert(*forward);
        }
    }
    change
}

/// Why this server cannot carry the network to others.
pub fn unfit(network: &NetworkSpec, overlay: &Overlay, observed: &Observed) -> Option<NetError> {
    let refuse = |why: String| {
        Some(NetError::Refused {
            what: format!("network {} to other servers", network.id),
            why: format!("{why}; guests reach those on this server and the world only"),
        })
    };
    let local = overlay.local;
    let Some((device, link)) = underlay(observed, local) else {
        return refuse(format!("no interface has {local}, where other servers reach this one"));
    };
    let (most, needs) = (most(link), overlay.mtu);
    if most < needs {
        let advice = format!("raise the MTU of {device} to {}", needs + OVERHEAD);
        return refuse(format!(
            "its guests send packets of up to {needs} bytes and {device} carries {most} of each \
             frame (MTU {} less {OVERHEAD}): {advice}",
            link.mtu
        ));
    }
    None
}

const OVERHEAD: u32 = basin_model::network::Network::VXLAN_OVERHEAD;

fn most(link: &Link) -> u32 {
    link.mtu.saturating_sub(OVERHEAD)
}

fn underlay(observed: &Observed, local: Ipv4Addr) -> Option<(&String, &Link)> {
    observed.links.iter().find(|(_, l)| l.addresses.iter().any(|a| a.addr() == local))
}

/// The largest packet that fits between servers from here.
pub fn mtu(observed: &Observed, local: Ipv4Addr) -> Option<u32> {
    underlay(observed, local).map(|(_, link)| most(link))
}

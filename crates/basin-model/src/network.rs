//! Networks that VMs attach to.

use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::ids::NetworkId;
use crate::meta::Meta;
use crate::vlan::{AddressRange, VlanId};

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub id: NetworkId,
    pub meta: Meta,
    pub kind: NetworkKind,
    /// What tells its frames from those of other networks between servers. Given for
    /// the network's whole life; absent until the server belongs to a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<Vni>,
    /// The largest packet of its guests where it spans servers, the same on all of
    /// them and for the network's whole life; [`Network::OVERLAY_MTU`] when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

/// A VXLAN network identifier: 24 bits, never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

impl Vni {
    pub const MIN: Vni = Vni(1);
    pub const MAX: Vni = Vni((1 << 24) - 1);

    pub fn new(number: u32) -> Option<Vni> {
        (Vni::MIN.0..=Vni::MAX.0).contains(&number).then_some(Vni(number))
    }

    pub fn get(self) -> u32 {
        self.0
    }

    /// Where to look first for a network's: two that are made at once rarely want the
    /// same, and other software's VXLAN on the same servers rarely has it.
    pub fn likely(network: NetworkId) -> Vni {
        let bits = network.uuid().as_u128() as u32 & Vni::MAX.0;
        Vni::new(bits).unwrap_or(Vni::MIN)
    }

    /// The first from `from` on, around the end, for which `free` holds.
    pub fn first_free(from: Vni, free: impl Fn(Vni) -> bool) -> Option<Vni> {
        let ahead = from.0..=Vni::MAX.0;
        ahead.chain(Vni::MIN.0..from.0).map(Vni).find(|vni| free(*vni))
    }
}

impl TryFrom<u32> for Vni {
    type Error = String;

    fn try_from(number: u32) -> Result<Vni, String> {
        Vni::new(number).ok_or_else(|| format!("{number} is not a VXLAN network identifier"))
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> u32 {
        vni.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How a network reaches the world.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum NetworkKind {
    /// A private subnet behind the server's own address, with DHCP and DNS.
    Nat {
        /// /8 to /29. The first address is the gateway, DHCP and DNS server.
        subnet: Ipv4Net,
        /// VMs are `NAME.DOMAIN`.
        domain: String,
    },
    /// A VLAN of the physical network: whatever has it is one network, on every server
    /// that has a trunk.
    Vlan {
        vlan: VlanId,
        subnet: Ipv4Net,
        /// The physical network's router.
        gateway: Ipv4Addr,
        /// Basin's own address, for DHCP and DNS. Every server has it, and none shows
        /// it outside: to a guest it is the server that the guest is on.
        service: Ipv4Addr,
        /// What interfaces get their addresses from.
        range: AddressRange,
        /// VMs are `NAME.DOMAIN`.
        domain: String,
    },
}

impl Network {
    /// Ethernet's own 1500 less what VXLAN over IPv4 puts around a frame.
    pub const OVERLAY_MTU: u32 = 1500 - Network::VXLAN_OVERHEAD;
    /// Outer IPv4, UDP and VXLAN headers and the inner Ethernet header.
    pub const VXLAN_OVERHEAD: u32 = 20 + 8 + 8 + 14;

    /// Of a VLAN where nobody chose another: Ethernet's own.
    pub const VLAN_MTU: u32 = 1500;

    pub fn subnet(&self) -> Ipv4Net {
        match &self.kind {
            NetworkKind::Nat { subnet, .. } | NetworkKind::Vlan { subnet, .. } => *subnet,
        }
    }

    pub fn domain(&self) -> &str {
        match &self.kind {
            NetworkKind::Nat { domain, .. } | NetworkKind::Vlan { domain, .. } => domain,
        }
    }

    pub fn vlan(&self) -> Option<VlanId> {
        match &self.kind {
            NetworkKind::Nat { .. } => None,
            NetworkKind::Vlan { vlan, .. } => Some(*vlan),
        }
    }

    /// Where guests send what is for other networks.
    pub fn gateway(&self) -> Ipv4Addr {
        match &self.kind {
            NetworkKind::Nat { subnet, .. } => Ipv4Addr::from_bits(subnet.network().to_bits() + 1),
            NetworkKind::Vlan { gateway, .. } => *gateway,
        }
    }

    /// Basin's own address, the same on every server.
    pub fn service(&self) -> Ipv4Addr {
        match &self.kind {
            NetworkKind::Nat { .. } => self.gateway(),
            NetworkKind::Vlan { service, .. } => *service,
        }
    }

    /// What interfaces get their addresses from.
    pub fn range(&self) -> AddressRange {
        match &self.kind {
            NetworkKind::Nat { subnet, .. } => AddressRange::of(*subnet),
            NetworkKind::Vlan { range, .. } => *range,
        }
    }

    /// Whether an interface may be given `address`: of the range, and neither the
    /// network, the broadcast, the gateway nor Basin's own address.
    pub fn assignable(&self, address: Ipv4Addr) -> bool {
        let subnet = self.subnet();
        subnet.contains(&address)
            && address != subnet.network()
            && address != subnet.broadcast()
            && address != self.gateway()
            && address != self.service()
            && self.range().contains(address)
    }

    /// Basin's own address of a VLAN where nobody chose one: the last that a machine
    /// may have and the router has not.
    pub fn default_service(subnet: Ipv4Net, gateway: Ipv4Addr) -> Ipv4Addr {
        let last = AddressRange::of(subnet).last();
        if last == gateway { Ipv4Addr::from_bits(last.to_bits().saturating_sub(1)) } else { last }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_identifier_goes_around_the_end() {
        let check = |from: u32, taken: &[u32], expect: Option<u32>| {
            let free = |v: Vni| !taken.contains(&v.get());
            let found = Vni::first_free(Vni::new(from).unwrap(), free);
            assert_eq!(found.map(Vni::get), expect, "from {from}");
        };
        check(1, &[], Some(1));
        check(1, &[1, 2], Some(3));
        check(Vni::MAX.get(), &[Vni::MAX.get(), 1], Some(2));
        assert_eq!((Vni::new(0), Vni::new(1 << 24)), (None, None));
    }

    #[test]
    fn a_record_of_before_has_no_identifier() {
        let old = r#"{"id":"0190a5f2-7c1e-7d3a-9b1f-2f6f0c9e4d11","meta":{"name":"n",
            "description":"","labels":{},"created_at":"2026-01-01T00:00:00Z"},
            "kind":{"kind":"nat","subnet":"10.1.0.0/24","domain":"vm"}}"#;
        let network: Network = serde_json::from_str(old).unwrap();
        assert_eq!((network.vni, network.mtu), (None, None));
    }

    #[test]
    fn a_vlan_gives_addresses_of_its_range_but_not_those_that_others_have() {
        let (subnet, gateway) = ("10.2.0.0/24".parse().unwrap(), Ipv4Addr::new(10, 2, 0, 254));
        let service = Network::default_service(subnet, gateway);
        assert_eq!(service, Ipv4Addr::new(10, 2, 0, 253));
        let mut kind = serde_json::json!({
            "kind": "vlan", "vlan": 100, "subnet": subnet, "gateway": gateway,
            "service": service, "range": "10.2.0.250-10.2.0.254", "domain": "vm",
        });
        let network = |kind: &serde_json::Value| -> Network {
            let meta = serde_json::json!({"name": "n", "description": "", "labels": {},
                "created_at": "2026-01-01T00:00:00Z"});
            let id = "0190a5f2-7c1e-7d3a-9b1f-2f6f0c9e4d11";
            serde_json::from_value(serde_json::json!({"id": id, "meta": meta, "kind": kind}))
                .unwrap()
        };
        let given = |n: &Network| {
            n.range().addresses().filter(|a| n.assignable(*a)).map(|a| a.octets()[3]).collect()
        };
        let all: Vec<u8> = given(&network(&kind));
        assert_eq!(all, [250, 251, 252]);
        kind["range"] = "10.2.0.0-10.2.0.2".into();
        let all: Vec<u8> = given(&network(&kind));
        assert_eq!(all, [1, 2], "not the network's own address");
    }
}

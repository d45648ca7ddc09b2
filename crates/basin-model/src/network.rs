//! Networks that VMs attach to.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::ids::NetworkId;
use crate::meta::Meta;

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub id: NetworkId,
    pub meta: Meta,
    pub kind: NetworkKind,
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
}

impl Network {
    pub fn subnet(&self) -> Ipv4Net {
        match &self.kind {
            NetworkKind::Nat { subnet, .. } => *subnet,
        }
    }

    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.subnet().network().to_bits() + 1)
    }

    /// Whether an interface may be given `address`: in the subnet, and neither
    /// the network, the broadcast nor the gateway address.
    pub fn assignable(&self, address: Ipv4Addr) -> bool {
        let subnet = self.subnet();
        subnet.contains(&address)
            && address != subnet.network()
            && address != subnet.broadcast()
            && address != self.gateway()
    }
}

//! Pure. Names of what a daemon makes in the kernel, and how it knows them again.
//!
//! Interface names are at most 15 bytes, so they carry the daemon's tag and the
//! short form of an id; the full ids are in the interface's alias, which survives
//! the daemon and vanishes with the interface.

use std::net::Ipv4Addr;

use basin_model::{HostId, MacAddr, NetworkId, NicId};

use crate::fabric::NetError;

/// Interface group of every bridge, VXLAN and VLAN port Basin makes. The kernel sets it in
/// the same step that makes them, so there is no moment at which one is unmarked.
pub const GROUP: u32 = 0xba51;

/// What begins the name of any daemon's bridge on a server.
pub const ANY_BRIDGE: &str = "bb";

/// The tag that tells the kernel objects of one daemon from another's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instance(String);

impl Instance {
    /// One to four of `a-z` and `0-9`.
    pub fn new(tag: &str) -> Result<Instance, NetError> {
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        if (1..=4).contains(&tag.len()) && tag.bytes().all(good) {
            Ok(Instance(tag.to_owned()))
        } else {
            Err(NetError::Refused {
                what: format!("network instance tag '{tag}'"),
                why: "write one to four of the letters a-z and the digits".into(),
            })
        }
    }

    /// A tag that follows from the server's id, one of 36^4.
    pub fn of_host(host: HostId) -> Instance {
        const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
        let mut bits = host.uuid().as_u128() as u64;
        let mut tag = String::new();
        for _ in 0..4 {
            tag.push(char::from(DIGITS[(bits % 36) as usize]));
            bits /= 36;
        }
        Instance(tag)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn bridge_prefix(&self) -> String {
        format!("bb{}-", self.0)
    }

    pub fn tap_prefix(&self) -> String {
        format!("bt{}-", self.0)
    }

    pub fn overlay_prefix(&self) -> String {
        format!("bv{}-", self.0)
    }

    pub fn bridge(&self, network: NetworkId) -> String {
        format!("bb{}-{}", self.0, network.short())
    }

    /// The VXLAN port of a network's bridge.
    pub fn overlay(&self, network: NetworkId) -> String {
        format!("bv{}-{}", self.0, network.short())
    }

    pub fn trunk_prefix(&self) -> String {
        format!("bl{}-", self.0)
    }

    /// The VLAN port of a network's bridge.
    pub fn trunk(&self, network: NetworkId) -> String {
        format!("bl{}-{}", self.0, network.short())
    }

    pub fn tap(&self, nic: NicId) -> String {
        format!("bt{}-{}", self.0, nic.short())
    }

    /// The nftables table, one of the family `inet` and one of `bridge`.
    pub fn table(&self) -> String {
        format!("basin_{}", self.0)
    }
}

pub fn bridge_alias(network: NetworkId) -> String {
    format!("basin network {network}")
}

/// The gateway's own address: local, and the same each time the bridge is made,
/// so that guests' ARP caches stay right.
pub fn bridge_mac(network: NetworkId) -> MacAddr {
    let id = network.uuid().into_bytes();
    MacAddr([0x02, 0xba, id[12], id[13], id[14], id[15]])
}

/// Whose a tap is: what a restarted daemon needs to guard it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TapOwner {
    pub network: NetworkId,
    pub nic: NicId,
    pub mac: MacAddr,
    pub address: Ipv4Addr,
}

impl TapOwner {
    pub fn alias(&self) -> String {
        let TapOwner { network, nic, mac, address } = self;
        format!("basin nic {nic} network {network} mac {mac} address {address}")
    }

    pub fn from_alias(alias: &str) -> Option<TapOwner> {
        let words: Vec<&str> = alias.split(' ').collect();
        let ["basin", "nic", nic, "network", network, "mac", mac, "address", address] = words[..]
        else {
            return None;
        };
        Some(TapOwner {
            network: network.parse().ok()?,
            nic: nic.parse().ok()?,
            mac: mac.parse().ok()?,
            address: address.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernel_and_differ_by_instance() {
        let network: NetworkId = "0190a5f2-7c1e-7d3a-9b1f-2f6f0c9e4d11".parse().unwrap();
        let a = Instance::new("abcd").unwrap();
        assert_eq!(a.bridge(network).len(), 15);
        let b = Instance::new("abc").unwrap();
        assert!(!a.bridge(network).starts_with(&b.bridge_prefix()));
        for bad in ["", "abcde", "A", "a-", "a b", "ä"] {
            assert!(Instance::new(bad).is_err(), "{bad}");
        }
        let host: HostId = "0190a5f2-7c1e-7d3a-9b1f-2f6f0c9e4d11".parse().unwrap();
        assert!(Instance::new(Instance::of_host(host).as_str()).is_ok());
    }

    #[test]
    fn an_alias_tells_whose_a_tap_is() {
        let owner = TapOwner {
            network: "0190a5f2-7c1e-7d3a-9b1f-2f6f0c9e4d11".parse().unwrap(),
            nic: "0190a5f2-7c1e-7d3a-9b1f-2f6f0c9e4d12".parse().unwrap(),
            mac: MacAddr([0x52, 0x54, 0, 1, 2, 3]),
            address: "10.7.0.9".parse().unwrap(),
        };
        assert_eq!(TapOwner::from_alias(&owner.alias()), Some(owner));
        assert!(owner.alias().len() < 256);
        for bad in ["", "basin nic", "uplink to rack 4", "basin nic x network y mac z address q"] {
            assert_eq!(TapOwner::from_alias(bad), None, "{bad}");
        }
    }
}

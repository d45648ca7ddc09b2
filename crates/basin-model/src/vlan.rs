//! Pure. VLANs of the physical network, and the interface by which a server has them.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// The identifier of a VLAN (IEEE 802.1Q): 12 bits, neither all zeros nor all ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct VlanId(u16);

impl VlanId {
    pub const MIN: u16 = 1;
    pub const MAX: u16 = 4094;

    pub fn new(number: u16) -> Option<VlanId> {
        (VlanId::MIN..=VlanId::MAX).contains(&number).then_some(VlanId(number))
    }

    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for VlanId {
    type Error = String;

    fn try_from(number: u16) -> Result<VlanId, String> {
        let (least, most) = (VlanId::MIN, VlanId::MAX);
        VlanId::new(number).ok_or_else(|| format!("{number} is not of {least} to {most}"))
    }
}

impl From<VlanId> for u16 {
    fn from(vlan: VlanId) -> u16 {
        vlan.0
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Addresses from one to another, both included: `10.20.0.100-10.20.0.199`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AddressRange {
    first: Ipv4Addr,
    last: Ipv4Addr,
}

impl AddressRange {
    pub fn new(first: Ipv4Addr, last: Ipv4Addr) -> Option<AddressRange> {
        (first <= last).then_some(AddressRange { first, last })
    }

    /// Every address of a subnet that a machine may have.
    pub fn of(subnet: Ipv4Net) -> AddressRange {
        let (network, broadcast) = (subnet.network().to_bits(), subnet.broadcast().to_bits());
        let first = network.saturating_add(1);
        let last = broadcast.saturating_sub(1).max(first);
        AddressRange { first: Ipv4Addr::from_bits(first), last: Ipv4Addr::from_bits(last) }
    }

    pub fn first(&self) -> Ipv4Addr {
        self.first
    }

    pub fn last(&self) -> Ipv4Addr {
        self.last
    }

    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&address)
    }

    /// In order.
    pub fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        (self.first.to_bits()..=self.last.to_bits()).map(Ipv4Addr::from_bits)
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for AddressRange {
    type Err = String;

    fn from_str(text: &str) -> Result<AddressRange, String> {
        let refused = || format!("'{text}' is not a range such as 10.20.0.100-10.20.0.199");
        let (first, last) = text.split_once('-').ok_or_else(refused)?;
        let address = |part: &str| part.trim().parse().map_err(|_| refused());
        AddressRange::new(address(first)?, address(last)?)
            .ok_or_else(|| format!("the range '{text}' ends before it begins"))
    }
}

impl TryFrom<String> for AddressRange {
    type Error = String;

    fn try_from(text: String) -> Result<AddressRange, String> {
        text.parse()
    }
}

impl From<AddressRange> for String {
    fn from(range: AddressRange) -> String {
        range.to_string()
    }
}

/// The name of a network interface of a server: `eth1`, `bond0`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LinkName(String);

impl LinkName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for LinkName {
    type Err = String;

    fn from_str(text: &str) -> Result<LinkName, String> {
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let fine = (1..=15).contains(&text.len()) && text.bytes().all(good);
        if fine && text != "." && text != ".." && text != "lo" {
            return Ok(LinkName(text.to_owned()));
        }
        Err(format!("'{text}' is not the name of a network interface such as eth1"))
    }
}

impl TryFrom<String> for LinkName {
    type Error = String;

    fn try_from(text: String) -> Result<LinkName, String> {
        text.parse()
    }
}

impl From<LinkName> for String {
    fn from(name: LinkName) -> String {
        name.0
    }
}

/// An interface by which a server has VLANs of the physical network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trunk {
    pub interface: LinkName,
    /// None: it has all VLANs but those that have an interface of their own, each frame
    /// with its tag. Otherwise this VLAN alone, without tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untagged: Option<VlanId>,
}

impl Trunk {
    /// The one by which a server has this VLAN.
    pub fn of<T: AsRef<Trunk>>(trunks: &[T], vlan: VlanId) -> Option<&T> {
        let find = |untagged| trunks.iter().find(|t| t.as_ref().untagged == untagged);
        find(Some(vlan)).or_else(|| find(None))
    }
}

impl AsRef<Trunk> for Trunk {
    fn as_ref(&self) -> &Trunk {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vlan_has_an_identifier_of_12_bits_that_is_not_reserved() {
        for (number, expect) in [(0, false), (1, true), (4094, true), (4095, false)] {
            assert_eq!(VlanId::new(number).is_some(), expect, "{number}");
        }
        assert!(serde_json::from_str::<VlanId>("4095").is_err());
    }

    #[test]
    fn a_range_is_read_as_it_is_written() {
        let range: AddressRange = "10.0.0.8-10.0.0.10".parse().unwrap();
        assert_eq!(range.to_string(), "10.0.0.8-10.0.0.10");
        assert_eq!(range.addresses().count(), 3);
        assert!(range.contains(range.last()) && !range.contains(Ipv4Addr::new(10, 0, 0, 11)));
        for bad in ["", "10.0.0.8", "10.0.0.9-10.0.0.8", "10.0.0.8-9", "a-b"] {
            assert!(bad.parse::<AddressRange>().is_err(), "{bad}");
        }
        let whole = AddressRange::of("10.0.0.0/29".parse().unwrap());
        assert_eq!(whole.to_string(), "10.0.0.1-10.0.0.6");
    }

    #[test]
    fn a_vlan_is_at_the_interface_of_its_own_if_it_has_one() {
        let vlan = |n| VlanId::new(n).unwrap();
        let trunk = |name: &str, untagged: Option<u16>| Trunk {
            interface: name.parse().unwrap(),
            untagged: untagged.map(vlan),
        };
        let all = [trunk("eth2", Some(100)), trunk("eth1", None)];
        let of = |n| Trunk::of(&all, vlan(n)).map(|t| t.interface.as_str());
        assert_eq!((of(100), of(200)), (Some("eth2"), Some("eth1")));
        assert_eq!(Trunk::of(&all[..1], vlan(200)), None);
    }

    #[test]
    fn names_of_interfaces_cannot_mean_more() {
        for (name, expect) in [
            ("eth1", true),
            ("enp3s0f1", true),
            ("bond0.5", true),
            ("", false),
            ("lo", false),
            ("..", false),
            ("a/b", false),
            ("eth\"", false),
            ("eth 1", false),
            ("a-name-that-is-too-long", false),
        ] {
            assert_eq!(name.parse::<LinkName>().is_ok(), expect, "{name}");
        }
    }
}

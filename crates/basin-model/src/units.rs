//! Quantities. A number without its unit never crosses a function's border.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A size in bytes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    pub const ZERO: Bytes = Bytes(0);

    pub const fn kib(n: u64) -> Bytes {
        Bytes(n << 10)
    }
    pub const fn mib(n: u64) -> Bytes {
        Bytes(n << 20)
    }
    pub const fn gib(n: u64) -> Bytes {
        Bytes(n << 30)
    }
    pub const fn get(self) -> u64 {
        self.0
    }
    pub const fn as_mib(self) -> u64 {
        self.0 >> 20
    }
    pub const fn saturating_sub(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_sub(other.0))
    }
    pub const fn checked_add(self, other: Bytes) -> Option<Bytes> {
        match self.0.checked_add(other.0) {
            Some(n) => Some(Bytes(n)),
            None => None,
        }
    }
    pub const fn is_multiple_of(self, unit: Bytes) -> bool {
        self.0.is_multiple_of(unit.0)
    }
}

impl Add for Bytes {
    type Output = Bytes;
    /// Saturating: a sum of sizes is compared with a capacity, so the ceiling is the safe answer.
    fn add(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Bytes {
    fn add_assign(&mut self, other: Bytes) {
        *self = *self + other;
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Bytes>>(iter: I) -> Bytes {
        iter.fold(Bytes::ZERO, Add::add)
    }
}

const BINARY: [(&str, u64); 5] =
    [("PiB", 1 << 50), ("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl fmt::Display for Bytes {
    /// The largest binary unit that fits, with one decimal where it is not whole: `1.5 GiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match BINARY.iter().find(|(_, unit)| self.0 >= *unit) {
            Some((name, unit)) if self.0.is_multiple_of(*unit) => {
                format!("{} {name}", self.0 / unit)
            }
            Some((name, unit)) => format!("{:.1} {name}", self.0 as f64 / *unit as f64),
            None => format!("{} B", self.0),
        };
        f.pad(&text)
    }
}

/// A text that is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a size: write a number with a unit, such as 512MiB or 20GiB")]
pub struct InvalidSize(pub String);

impl FromStr for Bytes {
    type Err = InvalidSize;

    /// Accepts `4096`, `512MiB`, `512M`, `1.5GiB`, `20G`, `10GB` (decimal). A bare
    /// `K`, `M`, `G`, `T` or `P` is binary, as in QEMU.
    fn from_str(s: &str) -> Result<Bytes, InvalidSize> {
        let bad = || InvalidSize(s.to_owned());
        let text = s.trim();
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = (&text[..split], text[split..].trim());
        let power = |base: u64, letter: char| {
            let exp = "KMGTP".find(letter.to_ascii_uppercase()).map(|i| i as u32 + 1)?;
            Some(base.pow(exp))
        };
        let letters: Vec<char> = unit.chars().collect();
        let scale = match letters.as_slice() {
            [] | ['B'] => Some(1),
            [l] => power(1024, *l),
            [l, 'i'] | [l, 'i', 'B'] => power(1024, *l),
            [l, 'B'] => power(1000, *l),
            _ => None,
        }
        .ok_or_else(bad)?;
        match number.split_once('.') {
            None => {
                let n: u64 = number.parse().map_err(|_| bad())?;
                n.checked_mul(scale).map(Bytes).ok_or_else(bad)
            }
            Some(_) => {
                let n: f64 = number.parse().map_err(|_| bad())?;
                let bytes = n * scale as f64;
                if bytes < 2f64.powi(63) { Ok(Bytes(bytes.round() as u64)) } else { Err(bad()) }
            }
        }
    }
}

/// A rate of data.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct BytesPerSecond(pub u64);

impl BytesPerSecond {
    pub const fn mib(n: u64) -> BytesPerSecond {
        BytesPerSecond(n << 20)
    }
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for BytesPerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/s", Bytes(self.0)))
    }
}

/// A number of virtual CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Vcpus(pub u32);

impl fmt::Display for Vcpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How often a VM has been handed to an owner (DESIGN D5). An owner that holds
/// an older one may not touch the VM or its disks.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    #[must_use]
    pub const fn next(self) -> Generation {
        Generation(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Locally administered, from 40 random bits of the caller: `52:54:00` as QEMU users know it.
    pub const fn from_random(bits: [u8; 3]) -> MacAddr {
        MacAddr([0x52, 0x54, 0x00, bits[0], bits[1], bits[2]])
    }

    /// A group address cannot belong to an interface.
    pub const fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        f.pad(&format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}"))
    }
}

/// A text that is not a unicast Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a unicast MAC address: write six hex pairs such as 52:54:00:12:34:56")]
pub struct InvalidMac(pub String);

impl FromStr for MacAddr {
    type Err = InvalidMac;

    fn from_str(s: &str) -> Result<MacAddr, InvalidMac> {
        let bad = || InvalidMac(s.to_owned());
        let mut bytes = [0u8; 6];
        let mut parts = s.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        let mac = MacAddr(bytes);
        let ok = parts.next().is_none() && mac.is_unicast() && bytes != [0; 6];
        if ok { Ok(mac) } else { Err(bad()) }
    }
}

impl TryFrom<String> for MacAddr {
    type Error = InvalidMac;
    fn try_from(s: String) -> Result<MacAddr, InvalidMac> {
        s.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> String {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str, expect: Option<u64>) {
        assert_eq!(text.parse::<Bytes>().ok(), expect.map(Bytes), "{text:?}");
    }

    #[test]
    fn sizes_parse_as_operators_write_them() {
        check("4096", Some(4096));
        check("512MiB", Some(512 << 20));
        check("512M", Some(512 << 20));
        check("10 GB", Some(10_000_000_000));
        check("1.5GiB", Some(3 << 29));
        check("1k", Some(1024));
        for bad in ["", "GiB", "-1G", "1.2.3G", "12XB", "1e9", "99999999999P", "1Gibibyte"] {
            check(bad, None);
        }
    }

    #[test]
    fn sizes_print_in_the_largest_unit() {
        assert_eq!(Bytes::gib(20).to_string(), "20 GiB");
        assert_eq!(Bytes(3 << 29).to_string(), "1.5 GiB");
        assert_eq!(Bytes(17).to_string(), "17 B");
    }

    #[test]
    fn a_mac_is_unicast_and_not_zero() {
        assert!("52:54:00:12:34:56".parse::<MacAddr>().is_ok());
        for bad in [
            "53:54:00:12:34:56",
            "00:00:00:00:00:00",
            "52:54:00:12:34",
            "52:54:00:12:34:5",
            "52:54:00:12:34:56:78",
        ] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn macs_round_trip(bits: [u8; 3]) {
            let mac = MacAddr::from_random(bits);
            prop_assert_eq!(mac.to_string().parse::<MacAddr>().unwrap(), mac);
        }

        #[test]
        fn no_text_panics_a_parser(text in ".{0,40}") {
            let _ = text.parse::<Bytes>();
            let _ = text.parse::<MacAddr>();
        }
    }
}

//! What a server's QEMU can give a guest ([`HardwareFacts`]), and what a guest was
//! given when it was started ([`GuestHardware`]).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Among which servers a running guest can move at all: what executes its
/// instructions, and under KVM also who made the CPU, which the guest sees.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "accelerator")]
pub enum CpuClass {
    Kvm { vendor: CpuVendor },
    Tcg,
}

impl fmt::Display for CpuClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CpuClass::Kvm { vendor } => write!(f, "KVM on {vendor}"),
            CpuClass::Tcg => f.write_str("emulation (TCG)"),
        }
    }
}

/// Who made a CPU, by its CPUID vendor string.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum CpuVendor {
    Intel,
    Amd,
    Hygon,
    Other(String),
}

impl CpuVendor {
    /// The vendor string, as in `vendor_id` of /proc/cpuinfo.
    pub fn id(&self) -> &str {
        match self {
            CpuVendor::Intel => "GenuineIntel",
            CpuVendor::Amd => "AuthenticAMD",
            CpuVendor::Hygon => "HygonGenuine",
            CpuVendor::Other(id) => id,
        }
    }
}

impl From<String> for CpuVendor {
    fn from(id: String) -> CpuVendor {
        match id.as_str() {
            "GenuineIntel" => CpuVendor::Intel,
            "AuthenticAMD" => CpuVendor::Amd,
            "HygonGenuine" => CpuVendor::Hygon,
            _ => CpuVendor::Other(id),
        }
    }
}

impl From<CpuVendor> for String {
    fn from(vendor: CpuVendor) -> String {
        vendor.id().to_owned()
    }
}

impl fmt::Display for CpuVendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CpuVendor::Intel => "Intel",
            CpuVendor::Amd => "AMD",
            CpuVendor::Hygon => "Hygon",
            CpuVendor::Other(id) => id,
        })
    }
}

/// What a server's QEMU can give a guest, as QEMU itself says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HardwareFacts {
    pub class: CpuClass,
    pub cpus: CpuModels,
    /// Versions of the q35 machine, oldest first.
    pub q35: Vec<MachineVersion>,
}

/// CPU models of QEMU, and what of each cannot be given here. Features are listed once:
/// most of some sixty models lack the same ones.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CpuModels {
    /// Every feature that some model has and this server cannot give.
    features: Vec<String>,
    /// Of each versioned model (`Nehalem-v1`) the places of what is missing in `features`.
    models: BTreeMap<String, Vec<u16>>,
    /// Unversioned names, such as `Skylake-Server-IBRS`, and what they mean.
    aliases: BTreeMap<String, String>,
}

impl CpuModels {
    pub fn new(
        models: impl IntoIterator<Item = (String, Vec<String>)>,
        aliases: BTreeMap<String, String>,
    ) -> CpuModels {
        let mut all = CpuModels { aliases, ..CpuModels::default() };
        for (name, missing) in models {
            let missing = missing.into_iter().map(|feature| all.place(feature)).collect();
            all.models.insert(name, missing);
        }
        all
    }

    fn place(&mut self, feature: String) -> u16 {
        let found = self.features.iter().position(|f| *f == feature);
        let place = found.unwrap_or_else(|| {
            self.features.push(feature);
            self.features.len() - 1
        });
        u16::try_from(place).unwrap_or(u16::MAX)
    }

    /// The features of a model that cannot be given here, sorted; none when QEMU does
    /// not know the model. The name may be an alias.
    pub fn missing(&self, model: &str) -> Option<Vec<&str>> {
        let places = self.models.get(self.versioned(model))?;
        let name = |place: &u16| self.features.get(usize::from(*place)).map_or("?", String::as_str);
        let mut names: Vec<&str> = places.iter().map(name).collect();
        names.sort_unstable();
        Some(names)
    }

    /// Whether all of the model can be given here.
    pub fn runs(&self, model: &str) -> bool {
        self.models.get(self.versioned(model)).is_some_and(Vec::is_empty)
    }

    /// What an unversioned name stands for; other names as they are.
    pub fn versioned<'a>(&'a self, model: &'a str) -> &'a str {
        self.aliases.get(model).map_or(model, String::as_str)
    }
}

/// The hardware that a guest sees: fixed when the VM is started, the same until it is
/// stopped, wherever it moves meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestHardware {
    pub class: CpuClass,
    /// A model for QEMU's `-cpu`: versioned where possible, or `host`.
    pub cpu: String,
    /// Of the q35 machine; none where QEMU has no versions of the machine (microvm).
    pub machine_version: Option<MachineVersion>,
}

impl GuestHardware {
    /// The server's own CPU, which no other server is sure to have.
    pub const HOST_CPU: &'static str = "host";
}

/// A release series of QEMU, or the version of one of its machines: `7.2` of
/// `pc-q35-7.2`. What QEMU can receive does not change within a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MachineVersion {
    pub major: u32,
    pub minor: u32,
}

/// A text that is not a version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a version: expected numbers such as 7.2")]
pub struct InvalidVersion(pub String);

impl MachineVersion {
    pub const fn new(major: u32, minor: u32) -> MachineVersion {
        MachineVersion { major, minor }
    }
}

impl FromStr for MachineVersion {
    type Err = InvalidVersion;
    /// Of `7.2`, or of a QEMU's whole version: `7.2.22`.
    fn from_str(text: &str) -> Result<MachineVersion, InvalidVersion> {
        let mut numbers = text.split('.').map(str::parse::<u32>);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => Ok(MachineVersion { major, minor }),
            _ => Err(InvalidVersion(text.to_owned())),
        }
    }
}

impl fmt::Display for MachineVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl TryFrom<String> for MachineVersion {
    type Error = InvalidVersion;
    fn try_from(text: String) -> Result<MachineVersion, InvalidVersion> {
        text.parse()
    }
}

impl From<MachineVersion> for String {
    fn from(version: MachineVersion) -> String {
        version.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_ordered_by_number() {
        let check = |text: &str, expect: Option<(u32, u32)>| {
            let found = text.parse::<MachineVersion>().ok();
            assert_eq!(found.map(|v| (v.major, v.minor)), expect, "{text}");
        };
        check("7.2", Some((7, 2)));
        check("7.2.22", Some((7, 2)));
        check("10.0.50-dirty", Some((10, 0)));
        check("7", None);
        check("jammy", None);
        check("7.2-rc1", None);
        let version = |t: &str| t.parse::<MachineVersion>().unwrap();
        assert!(version("10.0") > version("9.2"));
        assert_eq!(version("7.2.22").to_string(), "7.2");
    }

    #[test]
    fn features_are_kept_once_and_read_back() {
        let lacks = |features: &[&str]| features.iter().map(|f| (*f).to_owned()).collect();
        let models = CpuModels::new(
            [
                ("Nehalem-v1".to_owned(), lacks(&[])),
                ("Nehalem-v2".to_owned(), lacks(&["spec-ctrl"])),
                ("Haswell-v4".to_owned(), lacks(&["x2apic", "spec-ctrl"])),
            ],
            BTreeMap::from([("Nehalem".to_owned(), "Nehalem-v1".to_owned())]),
        );
        let json = serde_json::to_string(&models).unwrap();
        assert_eq!(json.matches("spec-ctrl").count(), 1, "{json}");
        let models: CpuModels = serde_json::from_str(&json).unwrap();
        let check = |model: &str, expect: Option<&[&str]>| {
            assert_eq!(models.missing(model).as_deref(), expect, "{model}");
            assert_eq!(models.runs(model), expect.is_some_and(<[_]>::is_empty), "{model}");
        };
        check("Nehalem-v1", Some(&[]));
        check("Nehalem", Some(&[]));
        check("Haswell-v4", Some(&["spec-ctrl", "x2apic"]));
        check("EPYC-v1", None);
    }

    #[test]
    fn vendors_are_known_by_what_the_cpu_says() {
        for id in ["GenuineIntel", "AuthenticAMD", "HygonGenuine", "  Shanghai  "] {
            let class = CpuClass::Kvm { vendor: CpuVendor::from(id.to_owned()) };
            let json = serde_json::to_string(&class).unwrap();
            assert_eq!(json, format!(r#"{{"accelerator":"kvm","vendor":"{id}"}}"#));
            assert_eq!(serde_json::from_str::<CpuClass>(&json).unwrap(), class);
        }
    }
}

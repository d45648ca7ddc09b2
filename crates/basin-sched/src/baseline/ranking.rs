//! Pure. QEMU's CPU models in the order of their generations, lowest first.
//!
//! Versions with TSX are left out where there is one without: microcode and kernels
//! switch TSX off on most servers, and a guest that was promised it could not move
//! there. So are models of no server: Atoms, Knights, and what is older than 64 bits.

use basin_model::hardware::{CpuClass, CpuVendor};

/// Given everywhere under KVM.
const LOWEST: &str = "kvm64-v1";

const INTEL: &[&str] = &[
    LOWEST,
    "Conroe-v1",
    "Penryn-v1",
    "Nehalem-v1",
    "Nehalem-v2",
    "Westmere-v1",
    "Westmere-v2",
    "SandyBridge-v1",
    "SandyBridge-v2",
    "IvyBridge-v1",
    "IvyBridge-v2",
    "Haswell-v2",
    "Haswell-v4",
    "Broadwell-v2",
    "Broadwell-v4",
    "Skylake-Client-v3",
    "Skylake-Client-v4",
    "Skylake-Server-v3",
    "Skylake-Server-v4",
    "Skylake-Server-v5",
    "Cascadelake-Server-v3",
    "Cascadelake-Server-v4",
    "Cascadelake-Server-v5",
    "Cooperlake-v1",
    "Cooperlake-v2",
    "Icelake-Server-v2",
    "Icelake-Server-v3",
    "Icelake-Server-v4",
    "Icelake-Server-v5",
    "Icelake-Server-v6",
    "SapphireRapids-v1",
    "SapphireRapids-v2",
    "SapphireRapids-v3",
    "GraniteRapids-v1",
    "GraniteRapids-v2",
];

const AMD: &[&str] = &[
    LOWEST,
    "Opteron_G1-v1",
    "Opteron_G2-v1",
    "Opteron_G3-v1",
    "Opteron_G4-v1",
    "Opteron_G5-v1",
    "EPYC-v1",
    "EPYC-v2",
    "EPYC-v3",
    "EPYC-v4",
    "EPYC-Rome-v1",
    "EPYC-Rome-v2",
    "EPYC-Rome-v3",
    // Without xsaves, which kernels switch off on that CPU because of an erratum.
    "EPYC-Rome-v4",
    "EPYC-Milan-v1",
    "EPYC-Milan-v2",
    "EPYC-Genoa-v1",
    "EPYC-Genoa-v2",
    "EPYC-Turin-v1",
];

const HYGON: &[&str] = &[LOWEST, "Dhyana-v1", "Dhyana-v2"];

/// Decision 0022: what is above x86-64-v2 is emulated slowly, and not by every QEMU alike.
const EMULATED: &[&str] = &["qemu64-v1", "Nehalem-v1"];

/// The models of a class that a VM may be given by itself, lowest first.
pub fn ranking(class: &CpuClass) -> &'static [&'static str] {
    match class {
        CpuClass::Tcg => EMULATED,
        CpuClass::Kvm { vendor: CpuVendor::Intel } => INTEL,
        CpuClass::Kvm { vendor: CpuVendor::Amd } => AMD,
        CpuClass::Kvm { vendor: CpuVendor::Hygon } => HYGON,
        CpuClass::Kvm { vendor: CpuVendor::Other(_) } => &[LOWEST],
    }
}

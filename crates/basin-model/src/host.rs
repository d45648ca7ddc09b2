//! Servers.

use std::collections::BTreeSet;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::hardware::HardwareFacts;
use crate::ids::{DatastoreId, HostId};
use crate::meta::Meta;
use crate::network::Network;
use crate::task::Problem;
use crate::units::{Bytes, Vcpus};
use crate::vlan::Trunk;

/// A server that belongs to the data centre.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    pub id: HostId,
    pub meta: Meta,
    /// Where other servers reach it; absent while it belongs to no cluster.
    #[serde(default)]
    pub address: Option<IpAddr>,
    /// The port of its API there, where it is not the usual one.
    #[serde(default)]
    pub api_port: Option<u16>,
    /// It is to be empty of running VMs, and to stay so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
    /// The interfaces by which it has VLANs of the physical network: at most one for
    /// all, and one for each VLAN that has no tag.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trunks: Vec<Trunk>,
}

/// Maintenance: running VMs are moved away, and none is placed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    pub since: Timestamp,
    /// Disks that only this server reaches move along; otherwise their VMs stay.
    #[serde(default)]
    pub move_local_disks: bool,
}

/// What a server's daemon found there at its start, and what is wrong there now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostStatus {
    pub host: HostId,
    pub daemon_version: String,
    /// Changes when the server reboots.
    pub boot_id: String,
    pub started_at: Timestamp,
    pub kernel: String,
    pub cpu_model: String,
    pub capacity: HostCapacity,
    pub qemu: QemuInfo,
    pub kvm: KvmVerdict,
    /// What its QEMU can give a guest; none where QEMU could not be asked.
    #[serde(default)]
    pub hardware: Option<HardwareFacts>,
    pub cgroups: String,
    /// The largest packet of a guest that fits between this server and others. None
    /// outside a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay_mtu: Option<u32>,
    /// How it has its trunks; empty where nobody has looked yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trunks: Vec<TrunkStatus>,
    /// What keeps the server from doing its work in full; empty when all is well.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// Shared datastores that are proven to be the same storage here as elsewhere.
    #[serde(default)]
    pub shared_datastores: BTreeSet<DatastoreId>,
}

/// An interface that is to carry VLANs, as it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrunkStatus {
    pub trunk: Trunk,
    /// The largest packet that it carries. None: see the problem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Why it cannot carry any, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl AsRef<Trunk> for TrunkStatus {
    fn as_ref(&self) -> &Trunk {
        &self.trunk
    }
}

/// Why a network that is a VLAN cannot be on a server with these trunks; none if it can,
/// or needs none.
pub fn no_vlan(network: &Network, trunks: &[TrunkStatus]) -> Option<String> {
    let vlan = network.vlan()?;
    let Some(trunk) = Trunk::of(trunks, vlan) else {
        return Some(format!("it is VLAN {vlan}, for which the server has no trunk"));
    };
    let interface = &trunk.trunk.interface;
    if let Some(problem) = &trunk.problem {
        return Some(format!("it is VLAN {vlan} of trunk {interface}: {problem}"));
    }
    let (most, needs) = (trunk.mtu?, network.mtu.unwrap_or(Network::VLAN_MTU));
    (most < needs).then(|| {
        format!(
            "its guests send packets of up to {needs} bytes, and trunk {interface} carries {most}"
        )
    })
}

/// Something that is wrong on a server until it is mended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// What it is about: `networks`, `trunk`, `blockd`, `datastore/ID`.
    pub subject: String,
    pub problem: Problem,
}

/// What a server offers to VMs: all of it, or the slice it was told to offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCapacity {
    pub cpus: Vcpus,
    pub memory: Bytes,
}

/// The QEMU of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum QemuInfo {
    Usable {
        path: String,
        version: String,
    },
    /// Missing or too old; VMs cannot start here.
    Unusable {
        reason: String,
    },
}

/// Whether VMs run on KVM here (DESIGN D2), and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvmVerdict {
    pub usable: bool,
    /// What the probe found, for the operator.
    pub reason: String,
}

//! Servers.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::reference::Meta;

/// A server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Host {
    #[serde(flatten)]
    pub meta: Meta,
    /// Absent until its daemon has reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<HostStatus>,
    /// What its VMs take of it.
    pub committed: Committed,
    pub state: HostState,
    /// Where other servers reach it; absent while it is alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Its controller decides for all.
    #[serde(default)]
    pub leads: bool,
    /// It has a copy of the cluster's state.
    #[serde(default)]
    pub keeps_state: bool,
    /// By which interfaces it has VLANs of the physical network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trunks: Vec<Trunk>,
    /// Since when it is being emptied, or kept empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining_since: Option<String>,
    /// What keeps it from being empty: VMs that cannot move, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stuck: Vec<StuckVm>,
}

/// An interface by which a server has VLANs of the physical network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Trunk {
    pub interface: String,
    /// The only VLAN that it has, without tags; when absent it has all others, with tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untagged: Option<u16>,
    /// The largest packet that it carries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Why it cannot carry any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// An interface that is to carry VLANs, instead of the one that did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TrunkSet {
    /// Such as `eth1`. Basin sets it up, and leaves all else of it as it is.
    pub interface: String,
    /// The only VLAN that it has, without tags; when absent it has all others, with tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untagged: Option<u16>,
}

/// How a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    Ready,
    /// It is being emptied for maintenance.
    Draining,
    /// It is in maintenance, and empty.
    Drained,
    /// It does not answer; its VMs may well run on.
    Unreachable,
}

/// A VM that cannot leave a server that is to be emptied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StuckVm {
    pub vm: String,
    pub reasons: Vec<String>,
    /// It is tried again by itself; otherwise somebody has to do something.
    #[serde(default)]
    pub waits: bool,
}

/// What a server's daemon found there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostStatus {
    pub daemon_version: String,
    pub started_at: String,
    pub kernel: String,
    pub cpu_model: String,
    /// What it offers to VMs.
    pub cpus: u32,
    pub memory_bytes: u64,
    /// Version of its QEMU; absent when there is none that can be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu_version: Option<String>,
    /// Why QEMU cannot be used, when it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu_problem: Option<String>,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// What the KVM probe found.
    pub kvm_reason: String,
    pub cgroups: String,
    /// What keeps it from doing its work in full.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<HostUsage>,
}

/// Something that is wrong on a server until it is mended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Condition {
    /// What it is about: `networks`, `trunk`, `blockd`, `datastore/ID`.
    pub subject: String,
    pub detail: String,
    pub advice: String,
}

/// What running VMs were promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Committed {
    pub vms: u32,
    pub vcpus: u32,
    pub memory_bytes: u64,
}

/// Figures of the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostUsage {
    pub memory_available_bytes: u64,
    pub daemon_resident_bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blockd_resident_bytes: Option<u64>,
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// Of the daemon.
    pub version: String,
    /// Of the API.
    pub api: String,
    /// Name of the server that answers.
    pub host: String,
}

//! Networks.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::reference::{Labels, Meta};

/// A network that VMs attach to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Network {
    #[serde(flatten)]
    pub meta: Meta,
    /// `nat`.
    pub kind: String,
    /// In CIDR form.
    pub subnet: String,
    pub gateway: String,
    pub domain: String,
    /// What tells it from other networks between servers (VXLAN).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
    /// The largest packet of its guests, where it is fixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Interfaces of VMs, whether they run or not.
    pub interfaces: u32,
}

/// A network to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkCreate {
    pub name: String,
    #[serde(default)]
    pub description: String,
    #[serde(default)]
    pub labels: Labels,
    /// An IPv4 subnet of /8 to /29, such as `10.80.0.0/24`.
    pub subnet: String,
    /// VMs are `NAME.DOMAIN`; `NETWORK.internal` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// The largest packet of its guests; by default what all servers carry, at most 1450.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

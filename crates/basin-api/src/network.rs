//! Networks.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::reference::{Labels, Meta};

/// A network that VMs attach to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Network {
    #[serde(flatten)]
    pub meta: Meta,
    /// `nat` or `vlan`.
    pub kind: String,
    /// In CIDR form.
    pub subnet: String,
    pub gateway: String,
    /// Basin's own address of a VLAN, for DHCP and DNS: the same on every server, and
    /// seen outside of none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    pub domain: String,
    /// The VLAN of the physical network that it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// What interfaces on a VLAN get their addresses from: `10.20.0.100-10.20.0.199`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<String>,
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
    /// The VLAN of the physical network that it is, of 1 to 4094; a network behind NAT
    /// when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// The physical network's router; needed with `vlan`, and only there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Basin's own address of the VLAN, which nobody else may have; by default the last
    /// of the subnet that is not the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// What interfaces on the VLAN get their addresses from, both ends included:
    /// `10.20.0.100-10.20.0.199`; by default the whole subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<String>,
    /// The largest packet of its guests; by default what all servers carry, at most 1450,
    /// or 1500 of a VLAN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

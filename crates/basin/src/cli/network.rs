//! `basin network`.

use basin_api::network::{Network, NetworkCreate};
use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::error::CliError;
use super::meta::MetaCommand;
use super::session::Session;
use super::spec::parse_label;
use super::table::Sheet;
use super::text::age;
use super::view::{View, meta_sheet};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List networks
    #[command(visible_alias = "ls")]
    List,
    /// Show one in full
    Show { network: String },
    /// Make a network with DHCP and DNS: behind NAT, or a VLAN of the physical network
    #[command(after_help = "Examples:
  basin network create lab --subnet 10.90.0.0/24 --domain lab.internal
  basin network create office --vlan 120 --subnet 10.20.0.0/24 --gateway 10.20.0.1 \\
      --range 10.20.0.100-10.20.0.199

A VLAN needs servers that have it: see 'basin host set-trunk'. Its service address
(--service) is Basin's own, for DHCP and DNS: nobody else may have it.")]
    Create(Create),
    /// Delete a network that no VM is on
    #[command(visible_alias = "rm")]
    Delete { network: String },
    #[command(flatten)]
    Meta(MetaCommand),
}

/// A network to make.
#[derive(Debug, Args)]
pub struct Create {
    name: String,
    /// An IPv4 subnet of /8 to /29: one that nothing else uses, or the VLAN's own
    #[arg(long, value_name = "CIDR")]
    subnet: String,
    /// VMs are NAME.DOMAIN [default: NETWORK.internal]
    #[arg(long)]
    domain: Option<String>,
    /// The VLAN of the physical network that it is, of 1 to 4094
    #[arg(long, value_name = "ID", requires = "gateway")]
    vlan: Option<u16>,
    /// The VLAN's router, a machine of the physical network
    #[arg(long, value_name = "ADDRESS", requires = "vlan")]
    gateway: Option<String>,
    /// What interfaces on the VLAN get their addresses from [default: the whole subnet]
    #[arg(long, value_name = "FROM-TO", requires = "vlan")]
    range: Option<String>,
    /// Basin's own address of the VLAN [default: the subnet's last]
    #[arg(long, value_name = "ADDRESS", requires = "vlan")]
    service: Option<String>,
    /// The largest packet of its guests [default: what all servers carry, at most 1450;
    /// of a VLAN 1500]
    #[arg(long, value_name = "BYTES")]
    mtu: Option<u32>,
    /// Words about it
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    description: String,
    /// A label (repeatable)
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    label: Vec<(String, String)>,
}

impl From<Create> for NetworkCreate {
    fn from(create: Create) -> NetworkCreate {
        let Create { name, subnet, domain, vlan, gateway, range, service, .. } = create;
        NetworkCreate {
            name,
            description: create.description,
            labels: create.label.into_iter().collect(),
            subnet,
            domain,
            vlan,
            gateway,
            service,
            range,
            mtu: create.mtu,
        }
    }
}

impl Command {
    pub async fn run(self, session: &Session) -> Result<(), CliError> {
        match self {
            Command::List => session.list::<Network>(&[].into()).await,
            Command::Show { network } => session.show::<Network>(&network).await,
            Command::Create(create) => {
                let create = NetworkCreate::from(create);
                session.said(&session.client.create::<Network>(&create).await?, "created")
            }
            Command::Delete { network } => {
                session.client.delete::<Network>(&network).await?;
                session.said_gone::<Network>(&network)
            }
            Command::Meta(command) => command.run::<Network>(session).await,
        }
    }
}

impl View for Network {
    const COLUMNS: &[&str] = &["NAME", "KIND", "SUBNET", "GATEWAY", "DOMAIN", "INTERFACES", "AGE"];

    fn label(&self) -> &str {
        &self.meta.name
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        vec![
            self.meta.name.clone(),
            match self.vlan {
                Some(vlan) => format!("{} {vlan}", self.kind),
                None => self.kind.clone(),
            },
            self.subnet.clone(),
            self.gateway.clone(),
            self.domain.clone(),
            self.interfaces.to_string(),
            age(now, &self.meta.created_at),
        ]
    }

    fn sheet(&self, now: Timestamp) -> Sheet {
        let mut sheet = meta_sheet(&self.meta, now);
        sheet
            .pair("Kind", &self.kind)
            .pair("Subnet", &self.subnet)
            .pair("Gateway", &self.gateway)
            .some("Service address", self.service.as_deref())
            .some("Addresses", self.range.as_deref())
            .pair("Domain", &self.domain)
            .some("VLAN", self.vlan.map(|vlan| vlan.to_string()))
            .some("VNI", self.vni.map(|vni| vni.to_string()))
            .some("MTU", self.mtu.map(|mtu| mtu.to_string()))
            .pair("Interfaces", self.interfaces.to_string());
        sheet
    }
}

//! `basin network`.

use basin_api::network::{Network, NetworkCreate};
use clap::Subcommand;
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
    /// Make a network behind NAT, with DHCP and DNS
    #[command(after_help = "Example:
  basin network create lab --subnet 10.90.0.0/24 --domain lab.internal")]
    Create {
        name: String,
        /// An IPv4 subnet of /8 to /29 that nothing else uses
        #[arg(long, value_name = "CIDR")]
        subnet: String,
        /// VMs are NAME.DOMAIN [default: NETWORK.internal]
        #[arg(long)]
        domain: Option<String>,
        /// The largest packet of its guests [default: what all servers carry, at most 1450]
        #[arg(long, value_name = "BYTES")]
        mtu: Option<u32>,
        /// Words about it
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        description: String,
        /// A label (repeatable)
        #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
        label: Vec<(String, String)>,
    },
    /// Delete a network that no VM is on
    #[command(visible_alias = "rm")]
    Delete { network: String },
    #[command(flatten)]
    Meta(MetaCommand),
}

impl Command {
    pub async fn run(self, session: &Session) -> Result<(), CliError> {
        match self {
            Command::List => session.list::<Network>(&[].into()).await,
            Command::Show { network } => session.show::<Network>(&network).await,
            Command::Create { name, subnet, domain, mtu, description, label } => {
                let labels = label.into_iter().collect();
                let create = NetworkCreate { name, description, labels, subnet, domain, mtu };
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
            self.kind.clone(),
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
            .pair("Domain", &self.domain)
            .some("VNI", self.vni.map(|vni| vni.to_string()))
            .some("MTU", self.mtu.map(|mtu| mtu.to_string()))
            .pair("Interfaces", self.interfaces.to_string());
        sheet
    }
}

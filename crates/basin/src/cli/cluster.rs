//! `basin init`, `basin join` and `basin cluster`.

use std::path::PathBuf;

use basin_api::cluster::{Cluster, ClusterCreate, ClusterJoin, ExternalEtcd, Mode};
use clap::{Args, Subcommand};

use super::error::CliError;
use super::out;
use super::session::Session;
use super::table::Sheet;
use super::text::{clean, parse_seconds, seconds, size};
use crate::restore::RestoreArgs;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  basin init --advertise 10.0.0.1
  basin init --advertise 10.0.0.1 --etcd https://etcd1:2379 --etcd-ca ca.pem \\
      --etcd-cert client.pem --etcd-key client.key

VMs run on; the API is away for a few seconds. Then, on another server:
  basin join https://10.0.0.1:7443 --token $TOKEN --advertise 10.0.0.2")]
pub struct Init {
    /// This server's address, where the other servers are to reach it
    #[arg(long, value_name = "ADDRESS")]
    advertise: String,
    /// Use this etcd instead of one that Basin runs; repeat it for each of its members
    #[arg(long, value_name = "URL")]
    etcd: Vec<String>,
    /// The CA that signed etcd's certificates (PEM)
    #[arg(long, value_name = "FILE", requires = "etcd")]
    etcd_ca: Option<PathBuf>,
    /// What to show to etcd (PEM)
    #[arg(long, value_name = "FILE", requires = "etcd_key")]
    etcd_cert: Option<PathBuf>,
    #[arg(long, value_name = "FILE", requires = "etcd_cert", help = "Its key (PEM)")]
    etcd_key: Option<PathBuf>,
    /// How long servers' certificates are good, such as 90d; a year, if not given. They are
    /// replaced by themselves after two thirds of that
    #[arg(long, value_name = "TIME", value_parser = parse_seconds)]
    certificate_life: Option<u64>,
}

impl Init {
    pub async fn run(self, session: &Session) -> Result<(), CliError> {
        let read =
            |path: &Option<PathBuf>| path.as_deref().map(super::session::read_text).transpose();
        let etcd = match self.etcd.is_empty() {
            true => None,
            false => Some(ExternalEtcd {
                ca: read(&self.etcd_ca)?,
                certificate: read(&self.etcd_cert)?,
                key: read(&self.etcd_key)?,
                endpoints: self.etcd,
            }),
        };
        let certificate_life_seconds = self.certificate_life;
        let create = ClusterCreate { advertise: self.advertise, etcd, certificate_life_seconds };
        let cluster = session.client.form_cluster(&create).await?;
        formed(session, &cluster, "the cluster is formed, with this server as its first")
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  basin join https://10.0.0.1:7443 --token \"$(ssh 10.0.0.1 basin token create --join)\" \\
      --advertise 10.0.0.2")]
pub struct Join {
    /// Any server of the cluster, such as https://10.0.0.1:7443
    #[arg(value_name = "URL", id = "cluster_url")]
    cluster: String,
    /// This server's address, where the other servers are to reach it
    #[arg(long, value_name = "ADDRESS")]
    advertise: String,
}

impl Join {
    /// `--token` is here what `basin token create --join` printed: it lets one server in.
    pub async fn run(self, session: &Session, token: Option<&str>) -> Result<(), CliError> {
        let Join { cluster: url, advertise } = self;
        let Some(token) = token.map(str::to_owned) else {
            let advice = "print one on a server of the cluster: basin token create --join";
            return Err(CliError::failed("a server joins with a token: --token TOKEN", advice));
        };
        let cluster = session.client.join_cluster(&ClusterJoin { url, token, advertise }).await?;
        formed(session, &cluster, "this server is one of the cluster")
    }
}

fn formed(session: &Session, cluster: &Cluster, what: &str) -> Result<(), CliError> {
    session.out.object(cluster, |cluster| {
        let id = cluster.id.as_deref().unwrap_or("?");
        format!("{what} ({})\n", clean(id))
    })
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show who leads, where the state is kept, and how old it is here
    Show,
    /// Save everything that the servers keep together, with its secrets, as one file
    #[command(after_help = "Example:
  basin cluster backup /backup/basin-$(date +%F)")]
    Backup { file: PathBuf },
    /// Begin anew from a backup, on this server, when the servers that keep the state are lost
    Restore(RestoreArgs),
}

impl Command {
    pub async fn run(self, session: &Session) -> Result<(), CliError> {
        match self {
            Command::Show => {
                let cluster = session.client.cluster().await?;
                session.out.object(&cluster, |cluster| sheet(cluster).render())
            }
            Command::Backup { file } => {
                let bytes = session.client.backup(&file).await?;
                let saved = BackupSaved { file: file.display().to_string(), bytes };
                session.out.object(&saved, |saved| {
                    format!("saved as {} ({})\n", clean(&saved.file), size(saved.bytes))
                })
            }
            // `main` runs it: there is no server that could be asked.
            Command::Restore(_) => Err(CliError::failed("no server can restore itself", "")),
        }
    }
}

#[derive(serde::Serialize)]
struct BackupSaved {
    file: String,
    bytes: u64,
}

fn sheet(cluster: &Cluster) -> Sheet {
    let name = |r: &basin_api::reference::Reference| r.name.clone().unwrap_or(r.id.clone());
    let mut sheet = Sheet::default();
    match cluster.mode {
        Mode::Single => sheet.pair("Mode", "one server, alone ('basin init' forms a cluster)"),
        Mode::Cluster => sheet.pair("Cluster", cluster.id.as_deref().unwrap_or("?")),
    };
    sheet.pair("Answered by", name(&cluster.answered_by));
    if cluster.mode == Mode::Cluster {
        let nobody = || "nobody: nothing can be changed now".to_owned();
        sheet.pair("Leader", cluster.leader.as_ref().map_or_else(nobody, name));
    }
    if let Some(store) = &cluster.store {
        let members: Vec<String> = store.members.iter().map(name).collect();
        let members = if store.external { "external".to_owned() } else { members.join(", ") };
        sheet.pair("State kept by", members);
        sheet.some("Asked at", store.asks.as_deref());
        match &store.lost {
            Some(why) => {
                let seconds = store.age_ms / 1000;
                sheet.pair("State", format!("{seconds} s old: {why}"));
            }
            None => {
                sheet.pair("State", "current");
            }
        }
    }
    if let Some(life) = cluster.certificate_life_seconds {
        sheet.pair("Certificates", format!("good for {}", seconds(life)));
    }
    if let Some(failed) = &cluster.failed_attempt
        && cluster.mode == Mode::Single
    {
        sheet.pair("Last attempt", format!("failed: {}", failed.detail));
    }
    sheet
}

/// Prints a join token, and to people what it is for.
pub async fn create_join_token(session: &Session, expires_in: Option<u64>) -> Result<(), CliError> {
    let create = basin_api::cluster::JoinTokenCreate { expires_in_seconds: expires_in };
    let made = session.client.create_join_token(&create).await?;
    if !session.out.is_table() {
        return session.out.data(&made);
    }
    eprintln!("It lets in one server, until {}.", clean(&made.expires_at));
    out::line(&made.token)
}

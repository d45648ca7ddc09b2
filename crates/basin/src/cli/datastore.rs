//! `basin datastore`.

use std::path::PathBuf;

use basin_api::datastore::{Datastore, DatastoreCreate, DatastoreServer};
use clap::Subcommand;
use jiff::Timestamp;

use super::error::CliError;
use super::meta::MetaCommand;
use super::session::Session;
use super::spec::parse_label;
use super::table::Sheet;
use super::text::{age, parse_size, size};
use super::view::{View, meta_sheet, name};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List datastores and their space
    #[command(visible_alias = "ls")]
    List,
    /// Show one in full
    Show { datastore: String },
    /// Make a datastore of a directory: of one server, or of all that have the same
    /// storage there
    #[command(after_help = "Examples:
  basin datastore create fast --path /mnt/nvme/basin --quota 500GiB
  basin datastore create fast2 --path /mnt/nvme/basin --host srv2
  basin datastore create nfs --path /mnt/nfs/basin --shared")]
    Create {
        name: String,
        /// As --path
        #[arg(value_name = "PATH", required_unless_present = "path", conflicts_with = "path")]
        directory: Option<PathBuf>,
        /// An absolute path on the server; made when absent
        #[arg(long, value_name = "PATH")]
        path: Option<PathBuf>,
        /// The server that makes it [default: the one that is asked]
        #[arg(long, value_name = "HOST")]
        host: Option<String>,
        /// The same storage is mounted at this path on every server
        #[arg(long)]
        shared: bool,
        /// Use at most this much of the file system
        #[arg(long, value_name = "SIZE", value_parser = parse_size)]
        quota: Option<u64>,
        /// How much may be promised to volumes, in percent of the space [default: 200]
        #[arg(long, value_name = "PERCENT")]
        overcommit: Option<u32>,
        /// Words about it
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        description: String,
        /// A label (repeatable)
        #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
        label: Vec<(String, String)>,
    },
    /// Forget an empty datastore
    #[command(visible_alias = "rm")]
    Delete { datastore: String },
    #[command(flatten)]
    Meta(MetaCommand),
}

impl Command {
    pub async fn run(self, session: &Session) -> Result<(), CliError> {
        match self {
            Command::List => session.list::<Datastore>(&[].into()).await,
            Command::Show { datastore } => session.show::<Datastore>(&datastore).await,
            Command::Create {
                name,
                directory,
                path,
                host,
                shared,
                quota,
                overcommit,
                description,
                label,
            } => {
                let path = path.or(directory).unwrap_or_default();
                let path = path.to_str().ok_or_else(|| {
                    CliError::usage(format!("the path {} is not UTF-8", path.display()), "")
                })?;
                let create = DatastoreCreate {
                    name,
                    description,
                    labels: label.into_iter().collect(),
                    path: path.to_owned(),
                    host,
                    shared,
                    quota_bytes: quota,
                    overcommit_percent: overcommit,
                };
                let made = session.client.create::<Datastore>(&create).await?;
                session.said(&made, "created")
            }
            Command::Delete { datastore } => {
                session.client.delete::<Datastore>(&datastore).await?;
                session.said_gone::<Datastore>(&datastore)
            }
            Command::Meta(command) => command.run::<Datastore>(session).await,
        }
    }
}

/// How many servers reach a shared datastore, in words.
fn reached(datastore: &Datastore) -> String {
    let reach = datastore.servers.iter().filter(|s| s.reaches).count();
    format!("{reach} of {} servers", datastore.servers.len())
}

impl View for Datastore {
    const COLUMNS: &[&str] =
        &["NAME", "KIND", "HOST", "PATH", "TOTAL", "USED", "FREE", "PROMISED", "AGE"];

    fn label(&self) -> &str {
        &self.meta.name
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        let space = |of: fn(&basin_api::datastore::Space) -> u64| {
            self.space.as_ref().map_or_else(|| "?".to_owned(), |s| size(of(s)))
        };
        vec![
            self.meta.name.clone(),
            self.kind.clone(),
            self.host.as_ref().map_or_else(|| reached(self), name),
            self.path.clone(),
            space(|s| s.total_bytes),
            space(|s| s.used_bytes),
            space(|s| s.free_bytes),
            space(|s| s.provisioned_bytes),
            age(now, &self.meta.created_at),
        ]
    }

    fn sheet(&self, now: Timestamp) -> Sheet {
        let mut sheet = meta_sheet(&self.meta, now);
        sheet
            .pair("Kind", &self.kind)
            .some("Host", self.host.as_ref().map(name))
            .pair("Path", &self.path)
            .some("Quota", self.quota_bytes.map(size))
            .pair("Overcommit", format!("{} %", self.overcommit_percent))
            .some("Problem", self.problem.as_deref());
        if self.shared {
            sheet.pair("Shared", reached(self));
        }
        if let Some(space) = &self.space {
            sheet
                .pair("Total", size(space.total_bytes))
                .pair("Used", size(space.used_bytes))
                .pair("Free", size(space.free_bytes))
                .pair("Promised", size(space.provisioned_bytes));
        }
        let server = |s: &DatastoreServer| {
            let reaches = if s.reaches { "yes" } else { "no" };
            vec![name(&s.host), reaches.to_owned(), s.problem.clone().unwrap_or_default()]
        };
        let servers: Vec<_> = self.servers.iter().map(server).collect();
        sheet.section("Servers", &["HOST", "REACHES", "PROBLEM"], &servers);
        sheet
    }
}

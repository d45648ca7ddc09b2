//! `basin volume`.

use basin_api::volume::{Volume, VolumeCreate, VolumeFormat, VolumeGrow, VolumeSource};
use clap::{ArgGroup, Args, Subcommand};
use jiff::Timestamp;

use super::error::CliError;
use super::follow::Wait;
use super::meta::MetaCommand;
use super::session::Session;
use super::spec::{CloneArg, FormatArg, parse_label};
use super::table::Sheet;
use super::text::{age, parse_size, size};
use super::view::{View, meta_sheet, name, word};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List volumes
    #[command(visible_alias = "ls")]
    List {
        /// Only those with this label (repeatable; all must be there)
        #[arg(short, long, value_name = "KEY=VALUE", value_parser = parse_label)]
        label: Vec<(String, String)>,
    },
    /// Show one in full
    Show { volume: String },
    /// Make a volume: blank, or of an image
    Create(CreateArgs),
    /// Make a copy of a volume, while no VM runs on it
    Clone(CloneArgs),
    /// Make a volume larger
    #[command(after_help = "Example:
  basin volume grow web-disk0 40GiB")]
    Grow {
        volume: String,
        #[arg(value_name = "SIZE", value_parser = parse_size)]
        size: u64,
        #[command(flatten)]
        wait: Wait,
    },
    /// Delete a volume that is attached to no VM, with all that is on it
    #[command(visible_alias = "rm")]
    Delete {
        volume: String,
        #[command(flatten)]
        wait: Wait,
    },
    #[command(flatten)]
    Meta(MetaCommand),
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("content").required(true).multiple(true).args(["size", "image"]))]
#[command(after_help = "Examples:
  basin volume create data --size 100GiB
  basin volume create root --image debian-12 --size 20GiB --clone full")]
pub struct CreateArgs {
    name: String,
    /// Its size; that of the image, when absent
    #[arg(long, value_parser = parse_size)]
    size: Option<u64>,
    /// The image to take its content from
    #[arg(long)]
    image: Option<String>,
    /// How to take it [default: linked]
    #[arg(long, value_enum, requires = "image")]
    clone: Option<CloneArg>,
    #[command(flatten)]
    place: PlaceArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  basin volume clone web-disk0 web-copy --clone full")]
pub struct CloneArgs {
    source: String,
    name: String,
    /// How to take its content [default: linked]
    #[arg(long, value_enum)]
    clone: Option<CloneArg>,
    /// A larger size
    #[arg(long, value_parser = parse_size)]
    size: Option<u64>,
    #[command(flatten)]
    place: PlaceArgs,
}

/// What all new volumes have.
#[derive(Debug, Args)]
struct PlaceArgs {
    /// How it is kept; what suits its content, when absent
    #[arg(long, value_enum)]
    format: Option<FormatArg>,
    /// Where it is kept; with its source, else on `default`, when absent
    #[arg(long)]
    datastore: Option<String>,
    /// Words about it
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    description: String,
    /// A label (repeatable)
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    label: Vec<(String, String)>,
    #[command(flatten)]
    wait: Wait,
}

impl Command {
    pub async fn run(self, session: &Session) -> Result<(), CliError> {
        match self {
            Command::List { label } => session.list::<Volume>(&label.into_iter().collect()).await,
            Command::Show { volume } => session.show::<Volume>(&volume).await,
            Command::Create(args) => {
                let clone = args.clone.map(Into::into).unwrap_or_default();
                let source = match (args.image, args.size) {
                    (Some(image), size_bytes) => VolumeSource::Image { image, clone, size_bytes },
                    (None, Some(size_bytes)) => VolumeSource::Blank { size_bytes },
                    (None, None) => {
                        return Err(CliError::usage("neither --size nor --image is given", ""));
                    }
                };
                create(session, args.name, source, args.place).await
            }
            Command::Clone(args) => {
                let source = VolumeSource::Volume {
                    volume: args.source,
                    clone: args.clone.map(Into::into).unwrap_or_default(),
                    size_bytes: args.size,
                };
                create(session, args.name, source, args.place).await
            }
            Command::Grow { volume, size, wait } => {
                let to = VolumeGrow { size_bytes: size };
                let task = session.client.grow_volume(&volume, to).await?;
                session.finish::<Volume>(task, wait, "grown").await
            }
            Command::Delete { volume, wait } => {
                let task = session.client.delete::<Volume>(&volume).await?;
                session.finish_gone::<Volume>(task, wait, &volume).await
            }
            Command::Meta(command) => command.run::<Volume>(session).await,
        }
    }
}

async fn create(
    session: &Session,
    name: String,
    source: VolumeSource,
    place: PlaceArgs,
) -> Result<(), CliError> {
    let create = VolumeCreate {
        name,
        description: place.description,
        labels: place.label.into_iter().collect(),
        source,
        format: place.format.map(VolumeFormat::from),
        datastore: place.datastore,
    };
    let task = session.client.create::<Volume>(&create).await?;
    session.finish::<Volume>(task, place.wait, "created").await
}

impl View for Volume {
    const COLUMNS: &[&str] = &["NAME", "STATE", "SIZE", "FORMAT", "DATASTORE", "VM", "AGE"];

    fn label(&self) -> &str {
        &self.meta.name
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        vec![
            self.meta.name.clone(),
            word(&self.state),
            size(self.size_bytes),
            word(&self.format),
            name(&self.datastore),
            self.vm.as_ref().map(name).unwrap_or_default(),
            age(now, &self.meta.created_at),
        ]
    }

    fn sheet(&self, now: Timestamp) -> Sheet {
        let mut sheet = meta_sheet(&self.meta, now);
        sheet
            .pair("State", word(&self.state))
            .pair("Size", size(self.size_bytes))
            .some("Allocated", self.allocated_bytes.map(size))
            .pair("Format", word(&self.format))
            .some("Reads from", self.backing.as_deref())
            .pair("Datastore", name(&self.datastore))
            .some("VM", self.vm.as_ref().map(name));
        sheet
    }
}

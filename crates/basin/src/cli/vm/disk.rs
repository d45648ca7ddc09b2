//! `basin vm disk`.

use basin_api::vm::{NewDisk, Vm};
use clap::Subcommand;

use crate::cli::error::CliError;
use crate::cli::follow::Wait;
use crate::cli::session::Session;
use crate::cli::spec::parse_disk;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Attach a disk to a stopped VM
    #[command(after_help = "Examples:
  basin vm disk attach web size=100GiB          a new, blank one
  basin vm disk attach web volume=data          a volume that exists
`basin vm create --help` has all forms of a disk.")]
    Attach {
        vm: String,
        #[arg(value_name = "SPEC", value_parser = parse_disk)]
        disk: NewDisk,
        #[command(flatten)]
        wait: Wait,
    },
    /// Detach a disk from a stopped VM; its volume stays
    Detach { vm: String, volume: String },
}

impl Command {
    pub async fn run(self, session: &Session) -> Result<(), CliError> {
        match self {
            Command::Attach { vm, disk, wait } => {
                let task = session.client.attach_disk(&vm, &disk).await?;
                session.finish::<Vm>(task, wait, "has the disk").await
            }
            Command::Detach { vm, volume } => {
                let vm = session.client.detach_disk(&vm, &volume).await?;
                session.said(&vm, "no longer has the disk")
            }
        }
    }
}

//! `basin vm`.

mod boot;
mod console;
mod create;
mod disk;
mod log;
mod migrate;
mod set;
mod terminal;
mod view;
mod wait;

use basin_api::client::{DeleteVm, VmAction};
use basin_api::vm::{Shutdown, Vm};
use clap::{Args, Subcommand};

use super::error::CliError;
use super::follow::Wait;
use super::meta::MetaCommand;
use super::out;
use super::session::Session;
use super::spec::parse_label;
use super::text::{clean, parse_seconds};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List VMs
    #[command(visible_alias = "ls")]
    List {
        /// Only those with this label (repeatable; all must be there)
        #[arg(short, long, value_name = "KEY=VALUE", value_parser = parse_label)]
        label: Vec<(String, String)>,
    },
    /// Show one in full, with what it uses at the moment
    Show { vm: String },
    /// Make a VM
    Create(Box<create::CreateArgs>),
    /// Start a VM
    Start(Which),
    /// Ask the guest to shut down; pull the plug when it does not in time
    Shutdown {
        vm: String,
        /// How long the guest has [default: 90s]
        #[arg(long, value_name = "TIME", value_parser = parse_seconds)]
        timeout: Option<u64>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Pull the plug, at once
    PowerOff(Which),
    /// Press the reset button
    Reset(Which),
    /// Stop a VM's CPUs; its memory stays
    Pause(Which),
    /// Let a paused VM go on
    Resume(Which),
    /// Move a running VM to another server
    Migrate(migrate::MigrateArgs),
    /// Delete a VM and the disks that were made for it
    #[command(visible_alias = "rm")]
    Delete {
        vm: String,
        /// Also while it runs
        #[arg(long)]
        force: bool,
        /// Keep its disks, as volumes
        #[arg(long)]
        keep_disks: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Change CPUs, memory, firmware and more, while the VM is stopped
    Set(set::SetArgs),
    /// A VM's disks
    #[command(subcommand)]
    Disk(disk::Command),
    /// Open a VM's serial console
    Console(console::ConsoleArgs),
    /// Print what a VM's serial console has shown
    Log(log::LogArgs),
    /// Print a VM's addresses, one a line
    Ip { vm: String },
    /// Wait until a VM is in a state, or its guest agent answers
    Wait(wait::WaitArgs),
    #[command(flatten)]
    Meta(MetaCommand),
}

/// A VM whose task somebody may wait for.
#[derive(Debug, Args)]
pub struct Which {
    vm: String,
    #[command(flatten)]
    wait: Wait,
}

impl Command {
    pub async fn run(self, session: &Session) -> Result<(), CliError> {
        let client = &session.client;
        match self {
            Command::List { label } => session.list::<Vm>(&label.into_iter().collect()).await,
            Command::Show { vm } => session.show::<Vm>(&vm).await,
            Command::Create(args) => args.run(session).await,
            Command::Start(which) => act(session, which, VmAction::Start, "started").await,
            Command::PowerOff(which) => {
                act(session, which, VmAction::PowerOff, "powered off").await
            }
            Command::Reset(which) => act(session, which, VmAction::Reset, "reset").await,
            Command::Pause(which) => act(session, which, VmAction::Pause, "paused").await,
            Command::Resume(which) => act(session, which, VmAction::Resume, "resumed").await,
            Command::Shutdown { vm, timeout, wait } => {
                let timeout_seconds = timeout.map(u32::try_from).transpose().map_err(|_| {
                    CliError::usage("the time is longer than any shutdown takes", "")
                })?;
                let task = client.shutdown_vm(&vm, &Shutdown { timeout_seconds }).await?;
                session.finish::<Vm>(task, wait, "shut down").await
            }
            Command::Migrate(args) => args.run(session).await,
            Command::Delete { vm, force, keep_disks, wait } => {
                let task = client.delete_vm(&vm, DeleteVm { force, keep_disks }).await?;
                session.finish_gone::<Vm>(task, wait, &vm).await
            }
            Command::Set(args) => args.run(session).await,
            Command::Disk(command) => command.run(session).await,
            Command::Console(args) => args.run(session).await,
            Command::Log(args) => args.run(session).await,
            Command::Ip { vm } => addresses(session, &vm).await,
            Command::Wait(args) => args.run(session).await,
            Command::Meta(command) => command.run::<Vm>(session).await,
        }
    }
}

async fn act(
    session: &Session,
    Which { vm, wait }: Which,
    action: VmAction,
    verb: &str,
) -> Result<(), CliError> {
    let task = session.client.vm_action(&vm, action).await?;
    session.finish::<Vm>(task, wait, verb).await
}

async fn addresses(session: &Session, vm: &str) -> Result<(), CliError> {
    let vm: Vm = session.client.get(vm).await?;
    let addresses: Vec<&str> = vm.nics.iter().map(|n| n.address.as_str()).collect();
    if addresses.is_empty() {
        return Err(CliError::failed(format!("vm {} has no network interface", vm.meta.name), ""));
    }
    if !session.out.is_table() {
        return session.out.data(&addresses);
    }
    addresses.iter().try_for_each(|address| out::line(&clean(address)))
}

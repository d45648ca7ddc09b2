//! `basin`: the command line, the daemon and the I/O daemon in one program.

mod blockd;
mod cli;
mod doctor;
mod restore;
mod serve;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Many servers, one pool: virtual machines on ordinary Linux servers.
///
/// `basin serve` makes this machine a server of virtual machines. All other
/// commands talk to such a server: the one on this machine through its socket
/// (as root), or one elsewhere with --url and --token.
#[derive(Debug, Parser)]
#[command(
    name = "basin",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = "Examples:
  basin serve                                      start the daemon
  basin image import https://…/debian-12.qcow2     get something to boot
  basin vm create web --image debian-12 --memory 2GiB --ssh-key ~/.ssh/id_ed25519.pub --start
  basin vm list                                    see how it is
  basin vm console web                             log in at its serial console
  basin --url https://server:7443 vm list          ask another server

Exit status: 0 done, 1 failed or refused, 2 wrong usage, 3 no server can be reached,
130 interrupted."
)]
struct Basin {
    #[command(flatten)]
    global: cli::Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Cli(Box<cli::Command>),
    /// Run this machine's daemon
    Serve(Box<serve::ServeArgs>),
    /// Run the I/O daemon that serves the disks of VMs (the daemon starts it by itself)
    #[command(hide = true)]
    Blockd(blockd::BlockdArgs),
    /// Check whether this machine can run virtual machines, and say what to do
    Doctor,
    /// Print what completes basin's commands in a shell
    #[command(after_help = "Examples:
  basin completions bash > /etc/bash_completion.d/basin
  basin completions zsh > ~/.zfunc/_basin
  basin completions fish > ~/.config/fish/completions/basin.fish")]
    Completions { shell: clap_complete::Shell },
    /// Print the API's OpenAPI document
    #[command(hide = true)]
    Openapi,
}

fn main() -> ExitCode {
    let Basin { global, command } = Basin::parse();
    match command {
        Command::Cli(command) => match *command {
            cli::Command::Cluster(cli::cluster::Command::Restore(args)) => {
                exit(restore::main(&args).map(|()| ExitCode::SUCCESS))
            }
            command => cli::main(&global, command),
        },
        Command::Serve(args) => exit(serve::main(&args).map(|()| ExitCode::SUCCESS)),
        Command::Blockd(args) => exit(blockd::main(&args).map(|()| ExitCode::SUCCESS)),
        Command::Doctor => exit(doctor::main()),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Basin::command(), "basin", &mut script);
            cli::print_raw(&script)
        }
        Command::Openapi => cli::print_raw(basin_controller::http::openapi_json().as_bytes()),
    }
}

fn exit(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_of_commands_is_sound() {
        Basin::command().debug_assert();
    }

    /// A newcomer reads these; an empty one is an omission.
    #[test]
    fn every_command_and_flag_is_explained() {
        fn visit(command: &clap::Command, path: &str) {
            assert!(command.get_about().is_some(), "`{path}` says not what it is for");
            for arg in command.get_arguments() {
                let explained = arg.get_help().is_some();
                assert!(
                    explained || arg.is_positional(),
                    "`{path} --{}` has no help",
                    arg.get_id()
                );
            }
            for sub in command.get_subcommands() {
                visit(sub, &format!("{path} {}", sub.get_name()));
            }
        }
        visit(&Basin::command(), "basin");
    }
}

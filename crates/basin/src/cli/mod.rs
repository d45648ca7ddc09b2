//! The command line: a client of the API like any other.
//!
//! It knows `basin-api` and no other crate of Basin, so whatever it can do, a
//! script can do as well. One file a noun; a noun's commands are an enum whose
//! `run` calls the client and hands the answer to [`out::Out`].

pub mod cluster;
mod datastore;
mod error;
mod events;
mod follow;
mod host;
mod image;
mod meta;
mod network;
mod out;
mod session;
mod spec;
mod table;
mod task;
mod text;
mod token;
mod view;
mod vm;
mod volume;

use std::path::PathBuf;
use std::process::ExitCode;

use basin_api::client::Settings;
use clap::{Args, Subcommand};

use error::CliError;
use out::{Format, Out};
use session::Session;

/// Which server, and how to print.
#[derive(Debug, Args)]
pub struct Global {
    /// Talk to the server with this socket [env: BASIN_SOCKET] [default: /run/basin/api.sock]
    #[arg(long, global = true, value_name = "PATH", conflicts_with = "url")]
    #[arg(help_heading = "Connection")]
    socket: Option<PathBuf>,
    /// Talk to the server at this address, such as https://server:7443 [env: BASIN_URL]
    #[arg(long, global = true, help_heading = "Connection")]
    url: Option<String>,
    /// The token to show to the server at --url; others can see it here, so prefer the
    /// environment [env: BASIN_TOKEN]
    #[arg(long, global = true, value_name = "SECRET", help_heading = "Connection")]
    token: Option<String>,
    /// Trust the certificates in this PEM file, instead of the system's [env: BASIN_CA]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Connection")]
    ca: Option<PathBuf>,
    /// How to print: tables for people, or what the API says for programs
    #[arg(short, long, global = true, value_enum, default_value_t, hide_possible_values = true)]
    #[arg(value_name = "table|json|yaml", help_heading = "Output")]
    output: Format,
}

impl Global {
    /// Flags win over the environment, each address over the other kind's variable.
    fn settings(&self, env: Settings) -> Settings {
        let flag_socket = self.socket.is_some();
        Settings {
            socket: self.socket.clone().or(env.socket),
            url: if flag_socket { None } else { self.url.clone().or(env.url) },
            token: self.token.clone().or(env.token),
            ca: self.ca.clone().or(env.ca),
        }
    }
}

/// What a client of a server can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Virtual machines
    #[command(subcommand, visible_alias = "vms")]
    Vm(vm::Command),
    /// Images: what disks are cloned from and guests boot from
    #[command(subcommand, visible_alias = "images")]
    Image(image::Command),
    /// Volumes: the virtual disks
    #[command(subcommand, visible_alias = "volumes")]
    Volume(volume::Command),
    /// Datastores: where volumes and images are kept
    #[command(subcommand, visible_alias = "datastores")]
    Datastore(datastore::Command),
    /// Networks that VMs attach to
    #[command(subcommand, visible_alias = "networks")]
    Network(network::Command),
    /// Servers
    #[command(subcommand, visible_alias = "hosts")]
    Host(host::Command),
    /// Tasks: long operations, under way and over
    #[command(subcommand, visible_alias = "tasks")]
    Task(task::Command),
    /// Tokens, for access over HTTPS
    #[command(subcommand, visible_alias = "tokens")]
    Token(token::Command),
    /// Make this server the first of a cluster; its VMs run on
    Init(cluster::Init),
    /// Have this server join a cluster
    Join(cluster::Join),
    /// The cluster: who leads, where its state is kept
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Follow every change as it happens, until Ctrl-C
    Events(events::EventsArgs),
    /// Print the versions of this program and of the server
    Version,
}

/// Runs a command to its end; prints what there is to print.
pub fn main(global: &Global, command: Command) -> ExitCode {
    let result = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| CliError::failed(format!("cannot start: {e}"), ""))
        .and_then(|runtime| {
            let result = runtime.block_on(run(global, command));
            // Nothing that is left can matter: standard input may never be ready.
            runtime.shutdown_background();
            result
        });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}

/// Prints bytes as they are.
pub fn print_raw(bytes: &[u8]) -> ExitCode {
    match out::write(bytes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}

async fn run(global: &Global, command: Command) -> Result<(), CliError> {
    let session = Session::new(&global.settings(Settings::from_env()), Out::new(global.output))?;
    let outcome = run_in(&session, global, command).await;
    if let Some(age) = session.client.state_age() {
        let age = age.as_secs();
        eprintln!("note: the servers that keep the state cannot be reached: this is {age} s old");
    }
    outcome
}

async fn run_in(session: &Session, global: &Global, command: Command) -> Result<(), CliError> {
    match command {
        Command::Vm(command) => command.run(session).await,
        Command::Image(command) => command.run(session).await,
        Command::Volume(command) => command.run(session).await,
        Command::Datastore(command) => command.run(session).await,
        Command::Network(command) => command.run(session).await,
        Command::Host(command) => command.run(session).await,
        Command::Task(command) => command.run(session).await,
        Command::Token(command) => command.run(session).await,
        Command::Init(args) => args.run(session).await,
        Command::Join(args) => args.run(session, global.token.as_deref()).await,
        Command::Cluster(command) => command.run(session).await,
        Command::Events(args) => args.run(session).await,
        Command::Version => version(session).await,
    }
}

async fn version(session: &Session) -> Result<(), CliError> {
    let server = session.client.version().await;
    if let (Ok(server), false) = (&server, session.out.is_table()) {
        return session.out.data(server);
    }
    out::line(&format!("client  {}", env!("CARGO_PKG_VERSION")))?;
    let server = server?;
    out::line(&format!(
        "server  {} (API {}) on {}",
        text::clean(&server.version),
        text::clean(&server.api),
        text::clean(&server.host)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        flags: (Option<&str>, Option<&str>),
        env: (Option<&str>, Option<&str>),
        expect: (Option<&str>, Option<&str>),
    ) {
        let owned = |s: Option<&str>| s.map(str::to_owned);
        let global = Global {
            socket: flags.0.map(PathBuf::from),
            url: owned(flags.1),
            token: None,
            ca: None,
            output: Format::Table,
        };
        let env =
            Settings { socket: env.0.map(PathBuf::from), url: owned(env.1), ..Settings::default() };
        let got = global.settings(env);
        assert_eq!((got.socket, got.url), (expect.0.map(PathBuf::from), owned(expect.1)));
    }

    #[test]
    fn a_flag_wins_over_the_environment() {
        check((None, None), (None, None), (None, None));
        check((None, None), (Some("/e"), Some("u")), (Some("/e"), Some("u")));
        check((Some("/f"), None), (Some("/e"), Some("u")), (Some("/f"), None));
        check((None, Some("f")), (None, Some("u")), (None, Some("f")));
    }
}

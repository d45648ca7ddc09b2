//! `basin serve`: the daemon of a server.

use std::path::PathBuf;

use basin_model::units::Bytes;
use clap::{Args, ValueEnum};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  basin serve                                run with everything this machine has
  basin serve --listen none                  answer on the unix socket only
  basin serve --cpus 8 --memory 32GiB        offer a part of the machine to VMs")]
pub struct ServeArgs {
    /// Where everything lives that must outlast a restart
    #[arg(long, env = "BASIN_STATE_DIR", value_name = "DIR", default_value = "/var/lib/basin")]
    pub state_dir: PathBuf,
    /// Where sockets live
    #[arg(long, env = "BASIN_RUN_DIR", value_name = "DIR", default_value = "/run/basin")]
    pub run_dir: PathBuf,
    /// Name of this server; the machine's own name when absent
    #[arg(long, env = "BASIN_NAME")]
    pub name: Option<String>,
    /// Address and port of the HTTPS API; `none` turns it off
    #[arg(long, env = "BASIN_LISTEN", value_name = "ADDR:PORT", default_value = "0.0.0.0:7443")]
    pub listen: Listen,
    /// Offer this many CPUs to VMs, instead of all
    #[arg(long, env = "BASIN_CPUS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub cpus: Option<u32>,
    /// Offer this much memory to VMs, instead of what the machine can spare
    #[arg(long, env = "BASIN_MEMORY", value_name = "SIZE")]
    pub memory: Option<Bytes>,
    /// Name of the control group that VMs run under
    #[arg(long, env = "BASIN_CGROUP", value_name = "NAME", default_value = "basin")]
    pub cgroup: String,
    /// What runs the guests' instructions; `auto` uses KVM where it works
    #[arg(long, env = "BASIN_ACCELERATOR", default_value = "auto")]
    pub accelerator: Accelerator,
    /// The QEMU to use, instead of the distribution's
    #[arg(long, env = "BASIN_QEMU", value_name = "PATH")]
    pub qemu: Option<PathBuf>,
    /// What machines are made of; `fake` ones are for tests of Basin itself
    #[arg(long, env = "BASIN_ENGINE", default_value = "qemu", hide = true)]
    pub engine: Engine,
    /// How to write the log, which goes to standard error
    #[arg(long, env = "BASIN_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// Where the HTTPS API is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    Nowhere,
    At(std::net::SocketAddr),
}

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Listen, String> {
        match text {
            "none" => Ok(Listen::Nowhere),
            _ => text.parse().map(Listen::At).map_err(|_| {
                "write an address and a port, such as 0.0.0.0:7443 or [::]:7443, or `none`".into()
            }),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Accelerator {
    Auto,
    Kvm,
    Tcg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    Qemu,
    Fake,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

pub fn main(args: ServeArgs) -> anyhow::Result<()> {
    anyhow::bail!("this build has no daemon in it yet: {args:?}")
}

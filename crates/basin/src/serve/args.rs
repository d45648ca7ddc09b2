//! What `basin serve` is told.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context as _;
use basin_model::{Bytes, Name};
use clap::{Args, ValueEnum};

#[derive(Debug, Clone, Args)]
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
    /// Offer this much memory to VMs, instead of all
    #[arg(long, env = "BASIN_MEMORY", value_name = "SIZE")]
    pub memory: Option<Bytes>,
    /// Name of the control group that VMs run under
    #[arg(long, env = "BASIN_CGROUP", value_name = "NAME", default_value = "basin")]
    pub cgroup: String,
    /// What runs the guests' instructions; `auto` uses KVM where it works
    #[arg(long, env = "BASIN_ACCELERATOR", default_value = "auto")]
    pub accelerator: AcceleratorArg,
    /// The QEMU to use, instead of the distribution's
    #[arg(long, env = "BASIN_QEMU", value_name = "PATH")]
    pub qemu: Option<PathBuf>,
    /// What machines are made of; `fake` ones are for tests of Basin itself
    #[arg(long, env = "BASIN_ENGINE", default_value = "qemu", hide = true)]
    pub engine: EngineArg,
    /// A member of etcd that is down for so many seconds is replaced; for tests
    #[arg(long, env = "BASIN_REPLACE_MEMBER_AFTER", default_value = "600", hide = true)]
    #[arg(value_name = "SECONDS", value_parser = seconds)]
    pub replace_member_after: Duration,
    /// How to write the log, which goes to standard error
    #[arg(long, env = "BASIN_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// The accelerator asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AcceleratorArg {
    Auto,
    Kvm,
    Tcg,
}

/// The engine asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EngineArg {
    Qemu,
    Fake,
    /// As on a server with an older QEMU and an older CPU.
    FakeOlder,
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// An address to listen on, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen(Option<SocketAddr>);

impl Listen {
    pub fn address(self) -> Option<SocketAddr> {
        self.0
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(s: &str) -> Result<Listen, String> {
        match s {
            "none" => Ok(Listen(None)),
            s => s.parse().map(|a| Listen(Some(a))).map_err(|_| {
                format!("'{s}' is neither ADDRESS:PORT, such as 0.0.0.0:7443, nor 'none'")
            }),
        }
    }
}

impl ServeArgs {
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("api.sock")
    }

    /// The name given, or as much of the host name as is a name.
    pub fn host_name(&self) -> anyhow::Result<Name> {
        if let Some(name) = &self.name {
            return name.parse().context("--name");
        }
        let full = nix::unistd::gethostname().context("cannot read the host name")?;
        Ok(name_of_host(&full.to_string_lossy()))
    }
}

fn seconds(text: &str) -> Result<Duration, std::num::ParseIntError> {
    text.parse().map(Duration::from_secs)
}

fn name_of_host(full: &str) -> Name {
    let first = full.split('.').next().unwrap_or_default().to_lowercase();
    let plain: String =
        first.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    let fallback = || "server".parse().unwrap_or_else(|_| unreachable!("a constant name"));
    plain.trim_matches('-').parse().unwrap_or_else(|_| fallback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_become_names() {
        let check = |full: &str, expect: &str| assert_eq!(name_of_host(full).as_str(), expect);
        check("srv1.example.net", "srv1");
        check("Node_7", "node-7");
        check("", "server");
        check("---", "server");
    }

    #[test]
    fn an_address_or_none() {
        assert_eq!("none".parse::<Listen>().unwrap().address(), None);
        assert!("127.0.0.1:1".parse::<Listen>().unwrap().address().is_some());
        assert!("7443".parse::<Listen>().is_err());
    }
}

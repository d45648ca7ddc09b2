//! `basin blockd`: the I/O daemon of a server.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub struct BlockdArgs {
    /// Where sockets live; its own are in `blockd` below it
    #[arg(long, env = "BASIN_RUN_DIR", value_name = "DIR", default_value = "/run/basin")]
    pub run_dir: PathBuf,
    /// Threads that serve disks; as many as suit the machine when absent
    #[arg(long, env = "BASIN_WORKERS", value_name = "N")]
    pub workers: Option<usize>,
}

pub fn main(args: BlockdArgs) -> anyhow::Result<()> {
    anyhow::bail!("this build has no I/O daemon in it yet: {args:?}")
}

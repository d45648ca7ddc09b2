//! `basin blockd`: the I/O daemon. The server's daemon starts it; people need not.

use std::path::PathBuf;

use basin_blockd::{BlockdConfig, run};
use clap::Args;

/// Serves the disks of this server's virtual machines.
#[derive(Debug, Clone, Args)]
pub struct BlockdArgs {
    /// Where its sockets and its list of exports are.
    #[arg(long, default_value = "/run/basin/blockd")]
    pub run_dir: PathBuf,

    /// Threads of the data path; as many as there are CPUs when absent.
    #[arg(long)]
    pub workers: Option<usize>,
}

pub fn main(args: &BlockdArgs) -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    let mut config = BlockdConfig::new(&args.run_dir);
    config.workers = args.workers;
    run(config)
}

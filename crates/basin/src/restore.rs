//! `basin cluster restore`: the one command of the cluster that works without a daemon,
//! because no daemon can run without what it brings back.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow, bail};
use basin_node::cluster::leave::HOST_ID;
use basin_node::cluster::restore::restore;
use clap::Args;

#[derive(Debug, Args)]
#[command(after_help = "The servers that keep the state are lost, or hold what must not stay:
  1. on every server:   systemctl stop basin
  2. on one of them:    basin cluster restore FILE; systemctl start basin
  3. on all others:     systemctl start basin     (they follow by themselves)

VMs run on. Those that were made after the backup are stopped; their disks stay as files.")]
pub struct RestoreArgs {
    /// What `basin cluster backup` saved
    file: PathBuf,
    /// The daemon's state directory
    #[arg(long, env = "BASIN_STATE_DIR", value_name = "DIR", default_value = "/var/lib/basin")]
    state_dir: PathBuf,
}

pub fn main(args: &RestoreArgs) -> anyhow::Result<()> {
    // etcd is reached over TLS.
    let _ = rustls::crypto::ring::default_provider().install_default();
    if !nix::unistd::geteuid().is_root() {
        bail!("the state is root's: restore it as root");
    }
    let file = std::fs::canonicalize(&args.file)
        .with_context(|| format!("cannot read {}", args.file.display()))?;
    let id = args.state_dir.join(HOST_ID);
    let host = std::fs::read_to_string(&id)
        .with_context(|| format!("{} is not a server's state", args.state_dir.display()))?;
    let host = host.trim().parse().with_context(|| format!("{} is damaged", id.display()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start")?;
    let restored = runtime.block_on(restore(&args.state_dir, host, &file));
    let restored = restored.map_err(|e| anyhow!("{}\n  → {}", e.detail, e.advice))?;
    println!("cluster {} is restored, on this server", restored.cluster);
    println!("its servers: {}", restored.servers.join(", "));
    println!("start the daemon here, then on the others: they follow");
    Ok(())
}

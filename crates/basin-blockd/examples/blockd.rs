//! The process alone, for tests and measurements: `blockd RUN_DIR [WORKERS [POLL_US]]`.

use std::time::Duration;

use basin_blockd::{BlockdConfig, run};

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut args = std::env::args().skip(1);
    let run_dir = args.next().ok_or_else(|| anyhow::anyhow!("give a run directory"))?;
    let mut config = BlockdConfig::new(run_dir);
    if let Some(workers) = args.next() {
        config.workers = Some(workers.parse()?);
    }
    if let Some(poll) = args.next() {
        config.poll = Duration::from_micros(poll.parse()?);
    }
    run(config)
}

//! Disks: blockd beside `qemu-storage-daemon`.

use basin_e2e::bench::io;
use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    io: io::IoArgs,
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    io::run(&Cli::parse().io)
}

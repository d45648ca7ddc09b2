//! The measurements of `make bench`.

use basin_e2e::bench::io;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Measures Basin beside what people use today")]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Disks: blockd beside qemu-storage-daemon.
    Io(io::IoArgs),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().what {
        What::Io(args) => io::run(&args),
    }
}

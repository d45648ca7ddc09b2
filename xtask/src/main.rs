//! Development tasks: `cargo run -p xtask -- COMMAND`; `make` calls them.

mod images;
mod shell;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the guest images that are missing or outdated
    Images { guests: Vec<images::Guest> },
}

fn main() -> Result<()> {
    let workspace = workspace()?;
    match Cli::parse().task {
        Task::Images { guests } => images::run(&workspace, &guests),
    }
}

fn workspace() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(Path::to_owned).context("xtask lies in no workspace")
}

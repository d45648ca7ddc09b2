//! Development tasks: `cargo run -p xtask -- TASK`; `make` calls them.

mod demo;
mod images;
mod openapi;
mod previous;
mod shell;
mod steps;
mod test;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

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
    /// Check the rules of architecture and style
    Tidy,
    /// Build the release before this one, which upgrades are tested from
    Previous,
    /// Run all tests
    Test,
    /// Measure; all benchmarks when none is named
    Bench { name: Option<String> },
    /// Write openapi/basin-v1.json
    Openapi,
    /// Show the main job on real guests
    Demo(demo::Options),
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    let workspace = workspace()?;
    match task {
        Task::Images { guests } => images::run(&workspace, &guests),
        Task::Tidy => tidy::run(&workspace),
        Task::Previous => {
            let binary = previous::run(&workspace)?;
            binary.into_iter().for_each(|binary| println!("{}", binary.display()));
            Ok(())
        }
        Task::Test => test::run(&workspace),
        Task::Bench { name } => test::bench(&workspace, name.as_deref()),
        Task::Openapi => openapi::run(&workspace),
        Task::Demo(options) => demo::run(&workspace, &options),
    }
}

fn workspace() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(Path::to_owned).context("xtask lies in no workspace")
}

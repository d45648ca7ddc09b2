//! Where the results of `make bench` go.

use std::path::PathBuf;

use anyhow::Context;

use super::report::{Figure, table};

/// Prints the figures, and writes them to `target/bench/NAME.json`.
pub fn publish(name: &str, figures: &[Figure]) -> anyhow::Result<()> {
    println!("\n{name}\n{}", table(figures));
    let dir = dir();
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let path = dir.join(format!("{name}.json"));
    let mut json = serde_json::to_vec_pretty(figures)?;
    json.push(b'\n');
    std::fs::write(&path, json).with_context(|| format!("cannot write {}", path.display()))
}

/// `target/bench` of the workspace, or of where cargo was told to build.
pub fn dir() -> PathBuf {
    let workspace = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    workspace.join(target.unwrap_or_else(|| PathBuf::from("target"))).join("bench")
}

//! All tests, as `make test` and the continuous integration run them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::steps::Steps;
use crate::{images, previous, shell, tidy};

/// Servers and guests share the machine's processors: more at once only gets slower.
const E2E_THREADS: &str = "--test-threads=2";

/// What tests that need the release before have in their names.
const UPGRADES: &str = "release_before";

pub fn run(workspace: &Path) -> Result<()> {
    let mut steps = Steps::default();
    let outcome = all(workspace, &mut steps);
    println!("\n{}", steps.summary());
    outcome
}

fn all(workspace: &Path, steps: &mut Steps) -> Result<()> {
    let cargo = |args: &[&str]| shell::run(cargo(workspace, args));
    steps.step("format", || cargo(&["fmt", "--all", "--check"]))?;
    steps.step("tidy", || tidy::run(workspace))?;
    steps.step("clippy", || {
        let strict = ["--", "-D", "warnings"];
        let args = ["clippy", "--locked", "--workspace", "--all-targets"];
        cargo(&[&args[..], &strict].concat())
    })?;
    steps.step("unit and integration tests", || {
        cargo(&["test", "--locked", "--workspace", "--exclude", "basin-e2e"])
    })?;
    release(workspace, steps)?;
    let previous = steps.step("the release before", || previous::run(workspace))?;
    steps.step("end-to-end tests", || {
        let mut args = vec!["test", "--locked", "-p", "basin-e2e", "--", E2E_THREADS];
        if previous.is_none() {
            args.extend(["--skip", UPGRADES]);
        }
        let mut tests = e2e(workspace, &args);
        if let Some(binary) = &previous {
            tests.env("BASIN_PREVIOUS_BIN", binary);
        }
        shell::run(tests)
    })
}

/// Benchmarks are the `benches` of basin-e2e: they drive the release binary too.
pub fn bench(workspace: &Path, name: Option<&str>) -> Result<()> {
    let mut steps = Steps::default();
    release(workspace, &mut steps)?;
    // What stands for a thousand servers in `scale`.
    if name.is_none_or(|name| name == "scale") {
        let example = ["-p", "basin-controller", "--example", "simulated"];
        let args = [&["build", "--locked", "--release"][..], &example].concat();
        steps.step("simulated servers", || shell::run(cargo(workspace, &args)))?;
    }
    let which = name.map_or(vec!["--benches"], |name| vec!["--bench", name]);
    let args = [&["bench", "--locked", "-p", "basin-e2e"][..], &which].concat();
    steps.step("benchmarks", || shell::run(e2e(workspace, &args)))
}

fn release(workspace: &Path, steps: &mut Steps) -> Result<()> {
    steps.step("release build", || {
        shell::run(cargo(workspace, &["build", "--locked", "--release", "-p", "basin"]))
    })?;
    steps.step("guest images", || images::run(workspace, &[]))
}

/// Tells the tests which binary they drive, and where the guests are.
fn e2e(workspace: &Path, args: &[&str]) -> Command {
    let mut command = cargo(workspace, args);
    let binary = release_binary(workspace);
    command.env("BASIN_SIMULATED", binary.with_file_name("examples").join("simulated"));
    command.env("BASIN_BIN", binary);
    command.env("BASIN_GUEST_IMAGES", images::cache_dir(workspace));
    command
}

pub fn cargo(workspace: &Path, args: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut cargo = Command::new(program);
    cargo.args(args).current_dir(workspace);
    cargo
}

pub fn release_binary(workspace: &Path) -> PathBuf {
    target_dir(workspace).join("release/basin")
}

pub fn target_dir(workspace: &Path) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    workspace.join(target.unwrap_or_else(|| PathBuf::from("target")))
}

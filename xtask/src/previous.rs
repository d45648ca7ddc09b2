//! The release before this one, built from the project's own history: what servers still
//! run while a cluster is upgraded.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::shell::{self, command};
use crate::test::{cargo, target_dir};

/// The commit that it was made of.
const RELEASE: &str = include_str!("../previous-release");

/// Builds it, unless that was done before; none where the history is not at hand.
pub fn run(workspace: &Path) -> Result<Option<PathBuf>> {
    let commit = RELEASE.trim();
    let dir = target_dir(workspace).join("previous");
    let binary = dir.join(format!("basin-{commit}"));
    if binary.is_file() {
        return Ok(Some(binary));
    }
    if !in_history(workspace, commit) {
        println!(
            "no upgrade is tested: the release before, commit {commit}, is not in this copy's \
             history (a shallow clone or an exported tree)"
        );
        return Ok(None);
    }
    // Only whole ones stay: a new release makes the old ones useless.
    let _ = fs::remove_dir_all(&dir);
    let (sources, target) = (dir.join("src"), dir.join("target"));
    fs::create_dir_all(&sources).with_context(|| format!("cannot make {}", sources.display()))?;
    extract(workspace, commit, &sources)?;
    seed(&target_dir(workspace).join("debug"), &target.join("debug"))?;
    let mut build = cargo(&sources, &["build", "--locked", "-p", "basin", "--target-dir"]);
    build.arg(&target).env_remove("CARGO_TARGET_DIR").env("CARGO_INCREMENTAL", "0");
    shell::run(build)?;
    let built = target.join("debug/basin");
    fs::rename(&built, &binary).with_context(|| format!("{} is not there", built.display()))?;
    fs::remove_dir_all(&target).and_then(|()| fs::remove_dir_all(&sources))?;
    Ok(Some(binary))
}

fn in_history(workspace: &Path, commit: &str) -> bool {
    let object = format!("{commit}^{{commit}}");
    let mut git = command("git", &[&"cat-file", &"-e", &object]);
    git.current_dir(workspace).stdout(Stdio::null()).stderr(Stdio::null());
    git.status().is_ok_and(|status| status.success())
}

/// Files are as old as now: cargo goes by that.
fn extract(workspace: &Path, commit: &str, to: &Path) -> Result<()> {
    let mut git = command("git", &[&"archive", &commit]);
    let mut git = git
        .current_dir(workspace)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start git archive")?;
    let archive = git.stdout.take().context("git archive has no output")?;
    let mut tar = command("tar", &[&"-x", &"-m", &"-C", &to]);
    tar.stdin(archive);
    shell::run(tar)?;
    if !git.wait().context("git archive")?.success() {
        bail!("git archive {commit} failed");
    }
    Ok(())
}

/// What both builds have in common is not built twice. In a target directory of its
/// own, since cargo takes the crates of either tree for those of the other.
fn seed(from: &Path, to: &Path) -> Result<()> {
    if !from.join(".fingerprint").is_dir() {
        return Ok(());
    }
    fs::create_dir_all(to)?;
    for (part, how) in [("deps", "-al"), ("build", "-a"), (".fingerprint", "-a")] {
        shell::quietly(command("cp", &[&how, &from.join(part), &to.join(part)]))?;
        for entry in fs::read_dir(to.join(part))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if is_own(&name) {
                remove(&path)?;
            }
        }
    }
    Ok(())
}

fn is_own(name: &str) -> bool {
    let name = name.strip_prefix("lib").unwrap_or(name);
    name.starts_with("basin") || name.starts_with("xtask")
}

fn remove(path: &Path) -> Result<()> {
    if path.is_dir() {
        fs::remove_dir_all(path)?
    } else {
        fs::remove_file(path)?
    }
    Ok(())
}

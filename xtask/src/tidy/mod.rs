//! Architecture and style rules that a program can check. Each message names what
//! to do instead.

mod decisions;
mod layers;
mod purity;
mod text;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::shell::{command, quietly};

/// A file of the repository: its path from the root, and its text.
pub struct Source {
    pub path: String,
    pub text: String,
}

impl Source {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn line_count(&self) -> usize {
        self.text.lines().count()
    }
}

/// What a rule found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub place: String,
    pub message: String,
}

impl Finding {
    pub fn new(place: impl Into<String>, message: impl Into<String>) -> Finding {
        Finding { place: place.into(), message: message.into() }
    }

    pub fn at(source: &Source, line: usize, message: impl Into<String>) -> Finding {
        Finding::new(format!("{}:{}", source.path, line + 1), message)
    }
}

/// Fails when a rule is broken; prints what is only worth a look.
pub fn run(workspace: &Path) -> Result<()> {
    let sources = read_sources(workspace)?;
    for source in sources.iter().filter(|source| text::is_worth_a_look(source)) {
        println!("tidy: {} has {} lines: worth a look", source.path, source.line_count());
    }
    let findings: Vec<Finding> = [
        layers::check(&sources),
        purity::check(&sources),
        text::check(&sources),
        decisions::check(&sources),
    ]
    .concat();
    for finding in &findings {
        eprintln!("tidy: {}: {}", finding.place, finding.message);
    }
    if !findings.is_empty() {
        bail!("tidy: {} findings", findings.len());
    }
    println!("tidy: {} files are in order", sources.len());
    Ok(())
}

/// What git knows or would add; nothing that it ignores. Binary files are left out.
fn read_sources(workspace: &Path) -> Result<Vec<Source>> {
    let mut git = command("git", &[&"ls-files", &"-z", &"--cached", &"--others"]);
    git.arg("--exclude-standard").current_dir(workspace);
    let list = String::from_utf8(quietly(git)?).context("a file's name is not UTF-8")?;
    let mut sources = Vec::new();
    for path in list.split_terminator('\0') {
        let full: PathBuf = workspace.join(path);
        // A file may be deleted and not yet committed so.
        if let Ok(bytes) = fs::read(&full)
            && let Ok(text) = String::from_utf8(bytes)
        {
            sources.push(Source { path: path.to_owned(), text });
        }
    }
    sources.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(sources)
}

#[cfg(test)]
mod testing {
    use super::*;

    /// `expect` are parts of the messages, in order.
    pub fn check(
        rule: impl Fn(&[Source]) -> Vec<Finding>,
        files: &[(&str, &str)],
        expect: &[&str],
    ) {
        let sources: Vec<Source> = files
            .iter()
            .map(|(path, text)| Source { path: (*path).to_owned(), text: (*text).to_owned() })
            .collect();
        let found = rule(&sources);
        let fits = found.len() == expect.len()
            && found.iter().zip(expect).all(|(finding, part)| {
                format!("{}: {}", finding.place, finding.message).contains(part)
            });
        assert!(fits, "found {found:#?}, expected {expect:#?}");
    }
}

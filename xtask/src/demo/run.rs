//! Runs what a newcomer would type, and shows it with its output as it comes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use super::place::Site;
use super::running::{Running, Said};
use super::stop::Stop;

pub fn show(words: &[&str]) {
    show_at("$", words);
}

fn show_at(prompt: &str, words: &[&str]) {
    println!("    {prompt} {}", words.iter().map(|w| quoted(w)).collect::<Vec<_>>().join(" "));
}

/// As a shell wants it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+&".contains(c);
    // Whole phrases that are meant for a shell stand as they are.
    if !word.is_empty() && (word.chars().all(plain) || word.contains("$(") || word.starts_with('$'))
    {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Starts programs on one of the demo's servers.
pub struct Runner {
    basin: PathBuf,
    socket: PathBuf,
    netns: PathBuf,
    prompt: &'static str,
    stop: Stop,
}

impl Runner {
    pub fn new(site: &Site, basin: &Path, prompt: &'static str, stop: Stop) -> Runner {
        Runner { basin: basin.to_owned(), socket: site.socket(), netns: site.netns(), prompt, stop }
    }

    /// What is typed there.
    pub fn show(&self, words: &[&str]) {
        show_at(self.prompt, words);
    }

    pub fn program(&self) -> PathBuf {
        self.basin.clone()
    }

    /// `basin ARGS`, not yet started and not shown.
    pub fn quiet_basin(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.basin);
        command.args(args).env("BASIN_SOCKET", &self.socket);
        for other in ["BASIN_URL", "BASIN_TOKEN", "BASIN_CA"] {
            command.env_remove(other);
        }
        command
    }

    /// Runs and shows `basin ARGS`.
    pub fn basin(&self, args: &[&str]) -> Result<Said> {
        self.spawn_basin(args)?.succeed()
    }

    pub fn spawn_basin(&self, args: &[&str]) -> Result<Running> {
        self.show(&[&["basin"], args].concat());
        self.spawn(self.quiet_basin(args), args)
    }

    /// The same from the machine's own network, over HTTPS.
    pub fn outside(&self, args: &[&str], token: &str) -> Result<Said> {
        self.show(&[&["basin"], args].concat());
        let mut command = self.quiet_basin(args);
        command.env_remove("BASIN_SOCKET").env("BASIN_TOKEN", token);
        self.spawn(command, args)?.succeed()
    }

    /// A program beside the guests: in the server's network.
    pub fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns.display())).arg(program);
        command
    }

    /// Runs and shows a program in the server's network.
    pub fn run_inside(&self, words: &[&str]) -> Result<Said> {
        self.show(words);
        let mut command = self.inside(words[0]);
        command.args(&words[1..]);
        self.spawn(command, words)?.succeed()
    }

    /// What somebody who waits does between two looks.
    pub fn pause(&self, time: Duration) -> Result<()> {
        std::thread::sleep(time);
        self.go_on()
    }

    fn go_on(&self) -> Result<()> {
        if self.stop.asked() { bail!("interrupted") } else { Ok(()) }
    }

    pub fn spawn(&self, command: Command, name: &[&str]) -> Result<Running> {
        Running::start(command, &name.join(" "), self.stop.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell() {
        let check = |word: &str, expect: &str| assert_eq!(quoted(word), expect);
        check("--size=256MiB", "--size=256MiB");
        check("console=ttyS0 quiet", "'console=ttyS0 quiet'");
        check("it's", r"'it'\''s'");
        check("", "''");
    }
}

//! The demo's `basin serve`.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::place::Site;
use super::run::Runner;

/// Inside the namespace, where all ports are free.
pub const HTTPS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7443);

const COMES_UP_WITHIN: Duration = Duration::from_secs(60);

pub struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts it, and waits until it answers.
    pub fn start(site: &Site, runner: &Runner, more: &[&str]) -> Result<Server> {
        let program = text(runner.program());
        Server::start_by(&[&program], site, runner, more)
    }

    /// The same by a program that becomes the server.
    pub fn start_by(by: &[&str], site: &Site, runner: &Runner, more: &[&str]) -> Result<Server> {
        let log = site.log();
        let (state, run) = (text(site.state_dir()), text(site.run_dir()));
        let flags = ["serve", "--state-dir", &state, "--run-dir", &run];
        let flags = [&flags[..], more, &["--cgroup", site.name()]].concat();
        runner.show(&[&["basin"], &flags[..], &["&"]].concat());
        runner.show(&["export", &format!("BASIN_SOCKET={}", site.socket().display())]);
        let mut command = runner.inside(by[0]);
        command.args(&by[1..]);
        let file = File::options().create(true).append(true).open(&log)?;
        // A group of its own: Ctrl-C is for the demo, which ends the server.
        command.args(flags).process_group(0).stdin(Stdio::null());
        command.stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().context("cannot start nsenter, of util-linux")?;
        let mut server = Server { child, log };
        let end = Instant::now() + COMES_UP_WITHIN;
        loop {
            server.check()?;
            let mut ask = runner.quiet_basin(&["version"]);
            if ask.stdout(Stdio::null()).stderr(Stdio::null()).status()?.success() {
                return Ok(server);
            }
            if Instant::now() > end {
                let within = COMES_UP_WITHIN.as_secs();
                bail!("expected an answer within {within} s, but none came:\n{}", server.tail());
            }
            runner.pause(Duration::from_millis(50))?;
        }
    }

    /// Without a chance to tidy up.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// An error if it is gone.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                bail!("expected the server to run, but it ended ({status}):\n{}", self.tail())
            }
        }
    }

    fn tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

fn text(path: PathBuf) -> String {
    path.display().to_string()
}

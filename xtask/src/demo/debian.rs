//! Debian 12 from its disk, set up by cloud-init.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::micro::{expect_gone, expect_silence};
use super::place::Place;
use super::run::{Runner, show};
use super::running::Said;
use super::single::Demo;
use crate::shell::{command, quietly};

/// Emulated, it takes one to three minutes until the agent answers.
const UP_WITHIN: &str = "10m";
const SSH_WITHIN: Duration = Duration::from_secs(300);

pub fn all(demo: &mut Demo<'_>, place: &Place) -> Result<()> {
    let ssh = demo.step("an ssh key to inject", |_| Ssh::new(place))?;
    let public = ssh.public();
    demo.step("a Debian guest: create with the key, and start", |basin| {
        let create = ["vm", "create", "web", "--image", "debian-12", "--disk-size", "4GiB"];
        let flags = ["--memory", "1GiB", "--ssh-key", &public, "--start"];
        basin.basin(&[&create[..], &flags].concat())?;
        basin.basin(&["vm", "list"])?.expect("running")
    })?;
    demo.step("its console, until the agent in the guest answers", |basin| {
        let mut log = basin.spawn_basin(&["vm", "log", "web", "--follow"])?.marked("| ");
        let wait = ["vm", "wait", "web", "--for", "agent", "--timeout", UP_WITHIN];
        let mut wait = basin.spawn_basin(&wait)?;
        while !wait.is_over()? {
            log.listen(Duration::from_millis(100))?;
        }
        wait.succeed()?;
        basin.basin(&["vm", "show", "web"])?.expect("Debian")
    })?;
    let address = demo.step("reach it over the network", |basin| {
        let address = basin.basin(&["vm", "ip", "web"])?.text().to_owned();
        basin.run_inside(&["ping", "-c", "3", &address])?.expect(" 0% packet loss")?;
        Ok(address)
    })?;
    demo.step("log in with ssh", |basin| {
        ssh.until_it_answers(basin, &address)?;
        let said = ssh.run(basin, &address, "id -un; hostname; uname -sr; ip -br -4 address")?;
        ["debian", "web", &address].iter().try_for_each(|text| said.expect(text))
    })?;
    demo.step("write to its disk", |basin| {
        let write = "dd if=/dev/urandom of=data bs=1M count=64 conv=fsync && \
                     sha256sum data > data.sha256 && sync && df -h /";
        ssh.run(basin, &address, write)?.expect("/dev/vda")
    })?;
    demo.step("pause and resume", |basin| {
        basin.basin(&["vm", "pause", "web"])?;
        basin.basin(&["vm", "list"])?.expect("paused")?;
        expect_silence(basin, &address)?;
        basin.basin(&["vm", "resume", "web"])?;
        let check = "echo 3 | sudo tee /proc/sys/vm/drop_caches > /dev/null; \
                     sha256sum -c data.sha256";
        ssh.run(basin, &address, check)?.expect("data: OK")
    })?;
    demo.step("shut down: systemd hears the power button", |basin| {
        basin.basin(&["vm", "shutdown", "web", "--timeout", "5m"])?;
        basin.basin(&["vm", "list"])?.expect("stopped")?;
        basin.basin(&["vm", "log", "web", "--tail", "400"])?.expect("Power down")
    })?;
    demo.step("delete", |basin| {
        basin.basin(&["vm", "delete", "web"])?;
        expect_gone(basin)
    })
}

/// A key pair, and how to log in with it.
struct Ssh {
    dir: PathBuf,
}

impl Ssh {
    fn new(place: &Place) -> Result<Ssh> {
        let dir = place.site().dir().join("ssh");
        fs::create_dir_all(&dir)?;
        let key = dir.join("key");
        show(&["ssh-keygen", "-t", "ed25519", "-N", "", "-f", &key.display().to_string()]);
        let args: [&dyn AsRef<std::ffi::OsStr>; 7] =
            [&"-q", &"-t", &"ed25519", &"-N", &"", &"-f", &key];
        quietly(command("ssh-keygen", &args))?;
        Ok(Ssh { dir })
    }

    fn public(&self) -> String {
        self.dir.join("key.pub").display().to_string()
    }

    fn words<'a>(&self, key: &'a str, login: &'a str, script: &'a str) -> [&'a str; 5] {
        ["ssh", "-i", key, login, script]
    }

    /// A host key is new with every VM, and nobody is there to type yes.
    fn command(&self, basin: &Runner, words: &[&str]) -> std::process::Command {
        let mut ssh = basin.inside("ssh");
        ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15"]);
        ssh.args(["-o", "StrictHostKeyChecking=accept-new", "-o", "LogLevel=ERROR", "-o"]);
        ssh.arg(format!("UserKnownHostsFile={}", self.dir.join("known_hosts").display()));
        ssh.args(&words[1..]);
        ssh
    }

    fn run(&self, basin: &Runner, address: &str, script: &str) -> Result<Said> {
        let (key, login) =
            (self.dir.join("key").display().to_string(), format!("debian@{address}"));
        let words = self.words(&key, &login, script);
        show(&words);
        basin.spawn(self.command(basin, &words), &words)?.succeed()
    }

    /// The agent is up before sshd, and cloud-init adds the key in between.
    fn until_it_answers(&self, basin: &Runner, address: &str) -> Result<()> {
        let (key, login) =
            (self.dir.join("key").display().to_string(), format!("debian@{address}"));
        let words = self.words(&key, &login, "true");
        let end = Instant::now() + SSH_WITHIN;
        loop {
            let (code, said) = basin.spawn(self.command(basin, &words), &words)?.silent().end()?;
            if code == 0 {
                return Ok(());
            }
            if Instant::now() > end {
                let what = format!("expected ssh to log in within {} s", SSH_WITHIN.as_secs());
                return Err(anyhow::anyhow!("{}", said.text().to_owned())).context(what);
            }
            basin.pause(Duration::from_secs(1))?;
        }
    }
}

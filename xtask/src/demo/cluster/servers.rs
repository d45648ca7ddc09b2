//! Three servers on one machine: each has a network namespace, mounts, a control group
//! and a directory of its own, and offers a part of the machine.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::fabric::Fabric;
use crate::demo::Setting;
use crate::demo::place::{Site, make_dir};
use crate::demo::run::Runner;
use crate::demo::running::Said;
use crate::demo::server::Server;

/// Names, and what is printed before what is typed there.
const NAMES: [(&str, &str); 3] = [("srv1", "srv1$"), ("srv2", "srv2$"), ("srv3", "srv3$")];

/// The part of the machine that each offers.
const SLICE: [&str; 6] = ["--listen", "0.0.0.0:7443", "--cpus", "2", "--memory", "3GiB"];

/// Mounts the shared storage, and becomes the server. The names of other namespaces are
/// let go: they would outlive their removal here.
const MOUNT: &str = r#"umount --lazy /run/netns 2>/dev/null
mount --bind "$1" "$2" && shift 2 && exec "$@""#;

pub struct Servers {
    pub all: Vec<Member>,
    pub fabric: Fabric,
    /// What the servers mount, and where each has it.
    storage: PathBuf,
    pub shared: PathBuf,
}

pub struct Member {
    pub name: &'static str,
    pub address: Ipv4Addr,
    pub site: Site,
    pub runner: Runner,
    /// None while its daemon is dead.
    daemon: Option<Server>,
}

impl Servers {
    pub fn new(setting: &Setting<'_>) -> Result<Servers> {
        let dir = setting.place.site().dir();
        let (storage, shared) = (dir.join("storage"), dir.join("shared"));
        make_dir(&storage)?;
        make_dir(&shared)?;
        let fabric = Fabric::new(setting.place)?;
        let mut all = Vec::new();
        for (number, (name, prompt)) in (1..).zip(NAMES) {
            let site = setting.place.part(name)?;
            let address = Ipv4Addr::new(10, 99, 0, number);
            fabric.plug_in(&site, address, name)?;
            let runner = Runner::new(&site, setting.basin, prompt, setting.stop.clone());
            all.push(Member { name, address, site, runner, daemon: None });
        }
        Ok(Servers { all, fabric, storage, shared })
    }

    pub fn start(&mut self) -> Result<()> {
        (0..self.all.len()).try_for_each(|n| self.start_one(n))
    }

    pub fn start_one(&mut self, n: usize) -> Result<()> {
        let (storage, shared) =
            (self.storage.display().to_string(), self.shared.display().to_string());
        let member = &mut self.all[n];
        let program = member.runner.program().display().to_string();
        let mounts = ["unshare", "--mount", "--propagation=private", "sh", "-c", MOUNT, "sh"];
        let by = [&mounts[..], &[&storage, &shared, &program]].concat();
        let more = [&["--name", member.name][..], &SLICE].concat();
        member.daemon = Some(Server::start_by(&by, &member.site, &member.runner, &more)?);
        Ok(())
    }

    /// `kill -9`, as a crash of the daemon is.
    pub fn kill(&mut self, n: usize) -> Result<()> {
        match self.all[n].daemon.take() {
            Some(daemon) => daemon.kill(),
            None => bail!("{}'s daemon is dead already", self.all[n].name),
        }
    }

    /// An error if one is gone.
    pub fn check(&mut self) -> Result<()> {
        self.all.iter_mut().flat_map(|m| &mut m.daemon).try_for_each(Server::check)
    }

    pub fn first(&self) -> &Runner {
        &self.all[0].runner
    }

    /// Where a VM runs.
    pub fn of(&self, vm: &str) -> Result<usize> {
        let table = self.quiet(&["vm", "list"])?;
        let line = table.lines().find(|l| l.split_whitespace().next() == Some(vm));
        let words = line.into_iter().flat_map(str::split_whitespace);
        match self.all.iter().position(|m| words.clone().any(|w| w == m.name)) {
            Some(n) => Ok(n),
            None => bail!("expected VM '{vm}' on a server, but the list says:\n{table}"),
        }
    }

    /// What a command says, asked again until it is as wanted; shown once it is.
    pub fn until(&self, n: usize, args: &[&str], wanted: impl Fn(&str) -> bool) -> Result<Said> {
        const WITHIN: Duration = Duration::from_secs(90);
        let runner = &self.all[n].runner;
        let end = Instant::now() + WITHIN;
        loop {
            let (code, said) = runner.spawn(runner.quiet_basin(args), args)?.silent().end()?;
            if (code == 0 && wanted(said.text())) || Instant::now() > end {
                let shown = runner.basin(args)?;
                if !wanted(shown.text()) {
                    bail!(
                        "{}: `basin {}` did not come to this in {} s",
                        self.all[n].name,
                        args.join(" "),
                        WITHIN.as_secs()
                    );
                }
                return Ok(shown);
            }
            runner.pause(Duration::from_millis(200))?;
        }
    }

    /// What a command says that is not part of the story.
    pub fn quiet(&self, args: &[&str]) -> Result<String> {
        let runner = self.first();
        let said = runner.spawn(runner.quiet_basin(args), args)?.silent().succeed()?;
        Ok(said.text().to_owned())
    }
}

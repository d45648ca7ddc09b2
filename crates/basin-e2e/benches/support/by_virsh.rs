//! `virsh migrate --live` between two libvirtd.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use basin_e2e::Cluster;

use super::libvirt::Libvirt;
use super::mover::{Guest, Mover};
use super::pair::BRIDGE;

const DOMAIN: &str = "moved";

pub struct ByVirsh<'c> {
    cluster: &'c Cluster,
    sides: [Libvirt; 2],
    at: usize,
}

impl<'c> ByVirsh<'c> {
    pub fn new(cluster: &'c Cluster) -> anyhow::Result<ByVirsh<'c>> {
        let [one, two] = &cluster.servers[..] else { bail!("two servers are needed") };
        let files = cluster.fabric.place.dir.join("libvirt");
        let sides = [Libvirt::start_with(one, &files)?, Libvirt::start_with(two, &files)?];
        Ok(ByVirsh { cluster, sides, at: 0 })
    }

    fn console(&self) -> PathBuf {
        self.cluster.fabric.place.dir.join("virsh-console")
    }

    fn spawn(&self, to: usize) -> anyhow::Result<Child> {
        let uri = format!("tcp://{}:49160", self.cluster.address(to));
        let mut virsh = Command::new("virsh");
        virsh
            .args(["--connect", &self.sides[self.at].uri(), "migrate", "--live", DOMAIN])
            .args([&self.sides[to].uri(), "--migrateuri", &uri])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        virsh.spawn().context("run virsh")
    }
}

impl Mover for ByVirsh<'_> {
    fn start(&mut self, guest: &Guest) -> anyhow::Result<()> {
        self.at = 0;
        fs::write(self.console(), "")?;
        let words = guest.command_line();
        let xml = self.sides[0].diskless(DOMAIN, (guest.mib, BRIDGE), &words, &self.console())?;
        self.sides[0].virsh(&["create", xml.to_str().context("a path that is no text")?])?;
        Ok(())
    }

    fn migrate(&mut self, limit: Duration) -> anyhow::Result<bool> {
        let to = 1 - self.at;
        let mut virsh = self.spawn(to)?;
        let begin = Instant::now();
        let mut aborted = false;
        let status = loop {
            if let Some(status) = virsh.try_wait()? {
                break status;
            }
            if begin.elapsed() > limit && !aborted {
                self.sides[self.at].virsh(&["domjobabort", DOMAIN])?;
                aborted = true;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        if status.success() {
            self.at = to;
            return Ok(true);
        }
        if aborted {
            return Ok(false);
        }
        let mut why = String::new();
        if let Some(mut text) = virsh.stderr.take() {
            std::io::Read::read_to_string(&mut text, &mut why)?;
        }
        bail!("virsh migrate: {why}");
    }

    fn said(&self) -> anyhow::Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(self.console())?).into_owned())
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        self.sides[self.at].virsh(&["destroy", DOMAIN])?;
        Ok(())
    }
}

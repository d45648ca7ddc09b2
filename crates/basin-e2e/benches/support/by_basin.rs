//! `basin vm migrate` between two servers of a cluster.

use anyhow::{Context, bail};
use basin_api::host::Host;
use basin_api::vm::{Boot, Machine, Vm};
use basin_e2e::observe::Collector;
use basin_e2e::{Cluster, GATEWAY, until};
use std::time::Duration;

use super::mover::{Guest, Mover};

const NAME: &str = "moved";
const MIB: u64 = 1 << 20;

/// Two servers that are one, and what hears their guests: through the servers' NAT.
pub struct Servers {
    pub cluster: Cluster,
    pub collector: Collector,
}

impl Servers {
    pub fn new() -> Servers {
        let cluster = Cluster::start(2);
        cluster.form();
        let first = &cluster.servers[0];
        until("two servers are ready", || {
            first.call(first.client().list::<Host>()).is_ok_and(|hosts| hosts.items.len() == 2)
        });
        let collector = cluster.fabric.enter(|| Collector::bind((GATEWAY, 0)));
        Servers { cluster, collector }
    }
}

pub struct ByBasin<'c> {
    cluster: &'c Cluster,
}

impl<'c> ByBasin<'c> {
    pub fn new(cluster: &'c Cluster) -> ByBasin<'c> {
        ByBasin { cluster }
    }

    fn basin(&self, args: &[&str]) -> anyhow::Result<String> {
        let done = self.cluster.servers[0].cli(args);
        if done.code != 0 {
            bail!("basin {}: {}", args.join(" "), done.stderr);
        }
        Ok(done.stdout)
    }
}

impl Mover for ByBasin<'_> {
    fn start(&mut self, guest: &Guest) -> anyhow::Result<()> {
        let first = &self.cluster.servers[0];
        // Basin gives it the odd 64 KiB by itself.
        let mut vm = first.micro(NAME, Machine::Q35);
        vm.memory_bytes = guest.mib * MIB;
        let Boot::Kernel { command_line, .. } = &mut vm.boot else {
            bail!("the micro guest boots a kernel")
        };
        *command_line = guest.command_line();
        first.create(&vm).start();
        Ok(())
    }

    /// Without a limit: Basin has to come to its end with every guest.
    fn migrate(&mut self, _limit: Duration) -> anyhow::Result<bool> {
        let first = &self.cluster.servers[0];
        let at = |vm: Vm| vm.status.host.and_then(|host| host.name);
        let from = at(first.guest(NAME).vm()).context("the guest is on no server")?;
        let to = if from == "srv1" { "srv2" } else { "srv1" };
        self.basin(&["vm", "migrate", NAME, "--to", to])?;
        Ok(true)
    }

    fn said(&self) -> anyhow::Result<String> {
        self.basin(&["vm", "log", NAME])
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        self.cluster.servers[0].guest(NAME).delete(true);
        Ok(())
    }
}

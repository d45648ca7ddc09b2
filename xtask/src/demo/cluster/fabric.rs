//! The network between the servers: a bridge in a namespace of its own, to which each
//! server has a cable, as to a switch.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::thread;

use anyhow::{Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::demo::place::{Place, Site};
use crate::shell::{command, quietly};

/// Who is in the network, and no server: guests' ticks go there.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 254);

const BRIDGE: &str = "switch";
const UPLINK: &str = "up0";

pub struct Fabric {
    site: Site,
}

impl Fabric {
    pub fn new(place: &Place) -> Result<Fabric> {
        let fabric = Fabric { site: place.part("net")? };
        let netns = fabric.site.name();
        ip(&["-n", netns, "link", "add", BRIDGE, "type", "bridge", "mcast_snooping", "0"])?;
        ip(&["-n", netns, "address", "add", &format!("{OUTSIDE}/24"), "dev", BRIDGE])?;
        ip(&["-n", netns, "link", "set", BRIDGE, "up"])?;
        Ok(fabric)
    }

    pub fn netns(&self) -> PathBuf {
        self.site.netns()
    }

    /// Gives a server its cable and its address.
    pub fn plug_in(&self, server: &Site, address: Ipv4Addr, port: &str) -> Result<()> {
        let (netns, inside) = (self.site.name(), server.name());
        let cable = ["type", "veth", "peer", "name", port, "netns", netns];
        ip(&[&["-n", inside, "link", "add", UPLINK][..], &cable].concat())?;
        ip(&["-n", netns, "link", "set", port, "master", BRIDGE, "up"])?;
        ip(&["-n", inside, "address", "add", &format!("{address}/24"), "dev", UPLINK])?;
        ip(&["-n", inside, "link", "set", UPLINK, "up"])?;
        ip(&["-n", inside, "route", "add", "default", "via", &OUTSIDE.to_string()])
    }

    /// Runs something whose sockets are in this network.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let netns = File::open(self.site.netns())?;
        let entered = move || {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
            work()
        };
        let done = thread::scope(|scope| scope.spawn(entered).join());
        done.map_err(|_| anyhow!("a thread in the servers' network panicked"))?
    }
}

fn ip(args: &[&str]) -> Result<()> {
    let mut ip = command("ip", &[]);
    ip.args(args);
    quietly(ip).map(drop)
}

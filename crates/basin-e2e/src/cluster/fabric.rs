//! The network between servers: a bridge in a network namespace of its own, to which
//! each server has a cable. Addresses repeat from fabric to fabric; names do not.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Mutex;

use super::slow::{Relay, Slow};
use crate::place::{Place, inside, ip, try_ip};
use crate::server::lock;
use crate::wait::until;

/// Who answers in the fabric, and is the way to all else.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 254);

/// A server's end of its cable.
const UPLINK: &str = "up0";
const BRIDGE: &str = "fabric";

/// A network for servers.
#[derive(Debug)]
pub struct Fabric {
    pub place: Place,
}

/// The cable of one server.
#[derive(Debug)]
pub(crate) struct Cable {
    netns: String,
    pub(crate) number: u8,
    slow: Mutex<Option<Relay>>,
}

impl Fabric {
    pub(crate) fn new() -> Fabric {
        let fabric = Fabric { place: Place::new() };
        let netns = fabric.place.name.as_str();
        // Else its address would be one of its ports', and change with them.
        let own = ["address", "02:00:0a:63:00:fe"];
        let bridge = ["type", "bridge", "mcast_snooping", "0"];
        ip(&[&["-n", netns, "link", "add", BRIDGE][..], &own, &bridge].concat());
        quiet(netns, BRIDGE);
        ip(&["-n", netns, "address", "add", &format!("{GATEWAY}/24"), "dev", BRIDGE]);
        ip(&["-n", netns, "link", "set", BRIDGE, "up"]);
        fabric
    }

    pub(crate) fn cable(&self, number: u8) -> Cable {
        Cable { netns: self.place.name.clone(), number, slow: Mutex::new(None) }
    }

    /// A command that runs in the fabric.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.place.command(program)
    }

    /// Runs something whose sockets are in the fabric.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        inside(&self.place.name, work)
    }

    /// What the bridge would let pass from now on, in nftables' words.
    #[track_caller]
    pub(crate) fn rules(&self, rules: &str) {
        // One transaction: there is no moment without a rule that stays.
        let script = format!(
            "table bridge faults {{}}\ndelete table bridge faults\ntable bridge faults {{\n\
             chain forward {{\ntype filter hook forward priority 0;\n{rules}}}\n}}\n"
        );
        let out = self.command("nft").arg(script).output().expect("run nft");
        assert!(out.status.success(), "nft: {}", String::from_utf8_lossy(&out.stderr));
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        self.place.remove();
    }
}

impl Cable {
    /// The server's address.
    pub fn address(&self) -> Ipv4Addr {
        address(self.number)
    }

    /// The fabric's end, a port of the bridge.
    pub(crate) fn port(&self) -> String {
        port(self.number)
    }

    /// Connects a server that has no cable, for its network namespace is new.
    pub(crate) fn plug_in(&self, place: &Place) {
        let (inside, netns, port) = (place.name.as_str(), self.netns.as_str(), self.port());
        self.fast();
        // A namespace that was removed takes its cables along when the kernel gets to it.
        let _ = try_ip(&["-n", netns, "link", "del", &port]);
        let peer = ["type", "veth", "peer", "name", &port, "netns", netns];
        let add = [&["-n", inside, "link", "add", UPLINK][..], &peer].concat();
        until("the cable's name is free", || try_ip(&add).is_ok());
        quiet(inside, UPLINK);
        quiet(netns, &port);
        // The bridge answers for the fabric, never a port that left it.
        ip(&["-n", netns, "link", "set", &port, "arp", "off", "master", BRIDGE, "up"]);
        ip(&["-n", inside, "address", "add", &format!("{}/24", self.address()), "dev", UPLINK]);
        ip(&["-n", inside, "link", "set", UPLINK, "up"]);
        ip(&["-n", inside, "route", "add", "default", "via", &GATEWAY.to_string()]);
    }

    /// Without a carrier, as when the cable is pulled.
    pub(crate) fn pull(&self) {
        ip(&["-n", &self.netns, "link", "set", &self.port(), "down"]);
    }

    pub(crate) fn put_back(&self) {
        ip(&["-n", &self.netns, "link", "set", &self.port(), "up"]);
    }

    /// Slow from now on, whatever it was.
    pub(crate) fn slow(&self, place: &Place, how: Slow) {
        self.fast();
        // Whole frames only: what the kernel cuts up late would be cut up after the wire.
        ip(&["-n", &place.name, "link", "set", UPLINK, "gso_max_segs", "1"]);
        *lock(&self.slow) = Some(Relay::start(self, how));
    }

    /// As a cable is.
    pub(crate) fn fast(&self) {
        if lock(&self.slow).take().is_some() {
            let _ = try_ip(&["-n", &self.netns, "link", "set", &self.port(), "master", BRIDGE]);
        }
    }

    /// Takes the port out of the bridge, for something else to pass frames on.
    pub(crate) fn detach(&self) {
        ip(&["-n", &self.netns, "link", "set", &self.port(), "nomaster"]);
    }

    pub(crate) fn attach(&self, port: &str) {
        ip(&["-n", &self.netns, "link", "set", port, "master", BRIDGE, "up"]);
    }

    pub(crate) fn netns(&self) -> &str {
        &self.netns
    }
}

/// Link-local addresses of IPv6 would come and settle while tests look.
fn quiet(netns: &str, link: &str) {
    ip(&["-n", netns, "link", "set", link, "addrgenmode", "none"]);
}

pub(crate) fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, number)
}

pub(crate) fn port(number: u8) -> String {
    format!("p{number}")
}

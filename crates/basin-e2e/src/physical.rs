//! The operator's physical network: a switch with VLANs, a machine on each of them, and
//! the servers' cables.
//!
//! Where the kernel knows VLANs, a server has one cable on which frames have tags.
//! Elsewhere it has one for each VLAN, without.

use std::process::Command;

use crate::place::{Place, inside, ip, try_ip};
use crate::server::Server;

/// A network in a namespace of its own. Its machines are that namespace's kernel.
pub struct Physical {
    place: Place,
    tags: bool,
}

const SWITCH: &str = "switch";
const TRUNK: &str = "trunk0";

impl Physical {
    #[track_caller]
    pub fn new() -> Physical {
        let place = Place::new();
        let probe = ["link", "add", "link", "lo", "name", "probe", "type", "vlan", "id", "9"];
        let tags = try_ip(&[&["-n", &place.name][..], &probe].concat()).is_ok();
        let physical = Physical { place, tags };
        if tags {
            physical.ip("link del probe");
            physical.bridge(SWITCH);
        }
        physical
    }

    /// A VLAN with a machine that has this address: its router.
    #[track_caller]
    pub fn vlan(&self, id: u16, address: &str) {
        let name = match self.tags {
            true => format!("{SWITCH}.{id}"),
            false => format!("vlan{id}"),
        };
        match self.tags {
            true => self.ip(&format!("link add link {SWITCH} name {name} type vlan id {id}")),
            false => self.bridge(&name),
        }
        self.ip(&format!("address add {address} dev {name}"));
        self.ip(&format!("link set {name} up"));
    }

    /// Lays a server's cables to these VLANs.
    #[track_caller]
    pub fn connect(&self, server: &Server, number: usize, vlans: &[u16]) {
        if self.tags {
            return self.cable(server, TRUNK, &format!("p{number}"), SWITCH);
        }
        for id in vlans {
            self.cable(server, &interface(*id), &format!("p{number}v{id}"), &format!("vlan{id}"));
        }
    }

    /// What tells a server by which interfaces it has the VLANs: arguments of the
    /// command line, one set a call.
    pub fn trunks(&self, vlans: &[u16]) -> Vec<Vec<String>> {
        if self.tags {
            return vec![vec![TRUNK.to_owned()]];
        }
        let one = |id: &u16| vec![interface(*id), "--untagged".to_owned(), id.to_string()];
        vlans.iter().map(one).collect()
    }

    /// The server's interface of a VLAN.
    pub fn interface(&self, vlan: u16) -> String {
        if self.tags { TRUNK.to_owned() } else { interface(vlan) }
    }

    /// Counts from now on what crosses the switch in a VLAN and is from this MAC address.
    #[track_caller]
    pub fn count(&self, vlan: u16, mac: &str) -> Count<'_> {
        let within = match self.tags {
            true => format!("vlan id {vlan}"),
            // Wildcards stand at a name's end only.
            false => {
                let ports: Vec<String> = (0..9).map(|n| format!("\"p{n}v{vlan}\"")).collect();
                format!("iifname {{ {} }}", ports.join(", "))
            }
        };
        let table = format!("count_{vlan}_{}", mac.replace(':', ""));
        self.run(
            "nft",
            &[&format!(
                "table bridge {table} {{ chain c {{ type filter hook prerouting priority -300; \
                 {within} ether saddr {mac} counter; }}; }}"
            )],
        );
        Count { physical: self, table }
    }

    /// Runs something whose sockets are the physical machine's.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        inside(&self.place.name, work)
    }

    #[track_caller]
    fn cable(&self, server: &Server, end: &str, port: &str, switch: &str) {
        let (there, here) = (&server.place.name, &self.place.name);
        ip(&["-n", there, "link", "add", end, "type", "veth", "peer", "name", port, "netns", here]);
        // Link-local addresses of IPv6 would come and settle while tests look.
        ip(&["-n", there, "link", "set", end, "addrgenmode", "none"]);
        self.ip(&format!("link set {port} addrgenmode none"));
        self.ip(&format!("link set {port} master {switch} up"));
    }

    #[track_caller]
    fn bridge(&self, name: &str) {
        self.ip(&format!("link add {name} type bridge forward_delay 0 mcast_snooping 0"));
        self.ip(&format!("link set {name} addrgenmode none up"));
    }

    #[track_caller]
    fn ip(&self, args: &str) {
        let args: Vec<&str> = args.split(' ').collect();
        ip(&[&["-n", &self.place.name][..], &args].concat());
    }

    #[track_caller]
    fn run(&self, program: &str, args: &[&str]) -> String {
        let out = self.command(program).args(args).output().expect("run it");
        assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    fn command(&self, program: &str) -> Command {
        self.place.command(program)
    }
}

impl Default for Physical {
    fn default() -> Physical {
        Physical::new()
    }
}

impl Drop for Physical {
    fn drop(&mut self) {
        self.place.remove();
    }
}

/// Frames that were counted.
pub struct Count<'p> {
    physical: &'p Physical,
    table: String,
}

impl Count<'_> {
    #[track_caller]
    pub fn frames(&self) -> u64 {
        let text = self.physical.run("nft", &["list", "table", "bridge", &self.table]);
        let words: Vec<&str> = text.split_whitespace().collect();
        let at = words.iter().position(|w| *w == "packets").expect("a counter");
        words.get(at + 1).and_then(|n| n.parse().ok()).expect("a number")
    }
}

fn interface(vlan: u16) -> String {
    format!("access{vlan}")
}

//! The world that a server is connected to: another network namespace, by a cable.

use std::process::Command;

use crate::place::{Place, add_netns, inside, ip};

/// Who answers outside.
const OUTSIDE: &str = "198.51.100.1";
/// The server's own address there.
const SERVER: &str = "198.51.100.2";

/// A network outside of the server, which is its default route.
#[derive(Debug)]
pub struct Outside {
    netns: String,
}

impl Outside {
    pub(crate) fn new(place: &Place) -> Outside {
        let outside = Outside { netns: place.outside() };
        add_netns(&outside.netns);
        outside.plug_in(place);
        outside
    }

    /// Lays the cable to a server that has none, for its network namespace is new.
    pub(crate) fn plug_in(&self, place: &Place) {
        let (inside, netns) = (&place.name, &self.netns);
        ip(&["-n", inside, "link", "add", "up0", "type", "veth", "peer", "out0", "netns", netns]);
        ip(&["-n", inside, "address", "add", &format!("{SERVER}/24"), "dev", "up0"]);
        ip(&["-n", netns, "address", "add", &format!("{OUTSIDE}/24"), "dev", "out0"]);
        for (netns, end) in [(inside, "up0"), (netns, "out0")] {
            // Link-local addresses of IPv6 would come and settle while tests look.
            ip(&["-n", netns, "link", "set", end, "addrgenmode", "none"]);
        }
        ip(&["-n", inside, "link", "set", "up0", "up"]);
        ip(&["-n", netns, "link", "set", "out0", "up"]);
        ip(&["-n", inside, "route", "add", "default", "via", OUTSIDE]);
    }

    /// The address of who is outside. There is no way from there to guests' addresses.
    pub fn address(&self) -> &'static str {
        OUTSIDE
    }

    /// What the server is known by outside.
    pub fn server_address(&self) -> &'static str {
        SERVER
    }

    /// A command that runs outside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.netns)).arg(program);
        command
    }

    /// Runs something whose sockets are outside.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        inside(&self.netns, work)
    }
}

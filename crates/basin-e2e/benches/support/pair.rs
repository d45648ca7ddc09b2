//! Two servers whose guests are in one network, as moves need it: each has a bridge that
//! its cable ends in.

use std::net::Ipv4Addr;

use basin_e2e::observe::Collector;
use basin_e2e::{Cluster, GATEWAY};

pub const BRIDGE: &str = "vm-br";
/// The guest's, on whichever side it is.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 100);

/// The servers' daemons have not been started.
pub struct Pair {
    pub cluster: Cluster,
    pub collector: Collector,
}

impl Pair {
    pub fn new() -> Pair {
        let cluster = Cluster::prepare(2, |_, setup| setup);
        for (n, server) in cluster.servers.iter().enumerate() {
            let address = cluster.address(n);
            // A bridge without an address of its own changes it with each tap, and what
            // others know of it is wrong for a while.
            let mac = format!("52:54:00:00:01:{n:02x}");
            server.sh(&format!(
                "ip link add {BRIDGE} address {mac} type bridge && ip address flush dev up0 && \
                 ip link set up0 master {BRIDGE} && ip address add {address}/24 dev {BRIDGE} && \
                 ip link set {BRIDGE} up"
            ));
        }
        let collector = cluster.fabric.enter(|| Collector::bind((GATEWAY, 0)));
        Pair { cluster, collector }
    }
}

//! Several servers: daemons in network namespaces of their own, connected by a fabric,
//! with storage that all of them see and storage that each has for itself.

mod fabric;
mod form;
mod rules;
mod slow;

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Mutex;

use crate::mounts;
use crate::place::Place;
use crate::server::{Server, lock};
use crate::start::Setup;
use rules::Cut;

pub(crate) use fabric::Cable;
pub use fabric::{Fabric, GATEWAY};
pub use slow::Slow;

/// Servers that reach each other. Numbers are those of `servers`, from 0.
pub struct Cluster {
    // The first field is dropped first: servers end before their network does.
    pub servers: Vec<Server>,
    pub fabric: Fabric,
    cuts: Mutex<Vec<Cut>>,
}

impl Cluster {
    /// So many servers with nothing special about them, each for itself still.
    #[track_caller]
    pub fn start(servers: usize) -> Cluster {
        Cluster::start_with(servers, |_, setup| setup)
    }

    /// Servers that are set up one by one: another binary, another size.
    #[track_caller]
    pub fn start_with(servers: usize, set_up: impl Fn(usize, Setup) -> Setup) -> Cluster {
        let cluster = Cluster::prepare(servers, set_up);
        for server in &cluster.servers {
            server.boot();
        }
        cluster
    }

    /// Servers whose daemons have not been started yet.
    #[track_caller]
    pub fn prepare(servers: usize, set_up: impl Fn(usize, Setup) -> Setup) -> Cluster {
        let fabric = Fabric::new();
        for dir in ["shared", "local"] {
            fs::create_dir(fabric.place.dir.join(dir)).expect("make a directory");
        }
        fs::create_dir(fabric.place.dir.join("storage")).expect("make a directory");
        let mut cluster = Cluster { servers: Vec::new(), fabric, cuts: Mutex::default() };
        for n in 0..servers {
            let setup = set_up(n, slice(n));
            let server = cluster.build(n, setup);
            cluster.servers.push(server);
        }
        cluster
    }

    /// One server more, whose daemon has not been started yet; its number.
    #[track_caller]
    pub fn add(&mut self, set_up: impl FnOnce(Setup) -> Setup) -> usize {
        let n = self.servers.len();
        let server = self.build(n, set_up(slice(n)));
        self.servers.push(server);
        n
    }

    fn build(&self, n: usize, setup: Setup) -> Server {
        let place = Place::new();
        if let Some(bytes) = setup.state_bytes {
            mounts::limited(&place, &place.state_dir(), bytes);
        }
        mounts::separate(&place);
        let own = place.dir.join("own");
        fs::create_dir(&own).expect("make a directory");
        mounts::bind(&place, &own, &self.local());
        let cable = self.fabric.cable(number(n));
        cable.plug_in(&place);
        let server = Server::new(place, None, Some(cable), setup);
        self.mount_shared(&server);
        server
    }

    /// Where each server has a directory that all of them see, as an NFS mount.
    pub fn shared(&self) -> PathBuf {
        self.fabric.place.dir.join("shared")
    }

    /// Where each server has a directory of its own, by the same path.
    pub fn local(&self) -> PathBuf {
        self.fabric.place.dir.join("local")
    }

    /// Takes the shared directory away from a server: its path is an empty directory.
    #[track_caller]
    pub fn unmount_shared(&self, n: usize) {
        mounts::unbind(&self.servers[n].place, &self.shared());
    }

    /// Gives it back.
    #[track_caller]
    pub fn remount_shared(&self, n: usize) {
        self.mount_shared(&self.servers[n]);
    }

    fn mount_shared(&self, server: &Server) {
        mounts::bind(&server.place, &self.fabric.place.dir.join("storage"), &self.shared());
    }

    pub fn address(&self, n: usize) -> Ipv4Addr {
        fabric::address(number(n))
    }

    /// The address of a server's API, as the others reach it.
    pub fn url(&self, n: usize) -> String {
        format!("https://{}:7443", self.address(n))
    }

    // What may befall the network.

    /// Pulls a server's cable: it has no carrier.
    #[track_caller]
    pub fn cut_off(&self, n: usize) {
        self.cable(n).pull();
    }

    #[track_caller]
    pub fn reconnect(&self, n: usize) {
        self.cable(n).put_back();
    }

    /// Only servers of the same group hear each other, besides what is dropped already.
    /// The fabric's own address still reaches all.
    #[track_caller]
    pub fn partition(&self, groups: &[&[usize]]) {
        let groups = groups.iter().map(|g| g.iter().map(|&n| number(n)).collect());
        let groups: Vec<Vec<u8>> = groups.collect();
        let all: Vec<u8> = (0..self.servers.len()).map(number).collect();
        self.cut(rules::partition(&groups, &all));
    }

    /// Nothing of one server's reaches the other; the way back is open.
    #[track_caller]
    pub fn drop_one_way(&self, from: usize, to: usize) {
        self.cut(vec![Cut::OneWay { from: number(from), to: number(to) }]);
    }

    /// A server's services at these ports, TCP and UDP, are out of the peer's reach.
    #[track_caller]
    pub fn drop_ports(&self, server: usize, peer: usize, ports: &[u16]) {
        let (server, peer) = (number(server), number(peer));
        self.cut(vec![Cut::Service { server, peer, ports: ports.to_vec() }]);
    }

    /// Nothing is dropped any more. Pulled and slow cables stay so.
    #[track_caller]
    pub fn heal(&self) {
        lock(&self.cuts).clear();
        self.fabric.rules("");
    }

    /// Makes a server's cable slow or lossy, until [`Cluster::fast`] or its next boot.
    #[track_caller]
    pub fn slow(&self, n: usize, how: Slow) {
        self.cable(n).slow(&self.servers[n].place, how);
    }

    #[track_caller]
    pub fn fast(&self, n: usize) {
        self.cable(n).fast();
    }

    fn cable(&self, n: usize) -> &Cable {
        self.servers[n].cable.as_ref().expect("servers of a cluster have cables")
    }

    fn cut(&self, more: Vec<Cut>) {
        let mut cuts = lock(&self.cuts);
        cuts.extend(more);
        self.fabric.rules(&rules::rules(&cuts, fabric::port));
    }
}

/// What each server is started with: a part of the machine.
fn slice(n: usize) -> Setup {
    Setup::new()
        .arg(format!("--name=srv{}", number(n)))
        .arg("--listen=0.0.0.0:7443")
        .arg("--cpus=2")
        .arg("--memory=4GiB")
}

/// The last byte of the address; 254 is the fabric's own.
fn number(n: usize) -> u8 {
    let number = u8::try_from(n + 1).ok().filter(|&n| n < 254);
    number.expect("as many servers as there are addresses")
}

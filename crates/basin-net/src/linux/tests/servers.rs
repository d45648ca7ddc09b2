//! Three servers on one underlay, each a namespace with a daemon of its own.
//!
//! A fabric works in the namespace of its thread, so each server is a thread. The
//! test itself is the switch between them, their way to the world, and whoever else
//! has a cable in that switch.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::mpsc;

use basin_model::network::Vni;
use basin_model::vlan::{Trunk, VlanId};
use basin_model::{MacAddr, NicId};
use futures::future::BoxFuture;
use nix::sched::{CloneFlags, setns};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use uuid::Uuid;

use super::packet::Guest;
use super::server::*;
use crate::fabric::{Fabric, Lease, NetworkSpec, Overlay, SyncError};
use crate::linux::LinuxFabric;

/// Where others on the underlay are: the world's router, no server.
pub const STRANGER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

type Job = Box<dyn for<'a> FnOnce(&'a mut State) -> BoxFuture<'a, ()> + Send>;

struct State {
    daemon: Daemon,
    fabric: LinuxFabric,
}

pub struct Server {
    pub namespace: String,
    pub address: Ipv4Addr,
    jobs: UnboundedSender<Job>,
}

/// Runs `body` with three servers.
pub fn in_cluster(name: &str, body: impl FnOnce([Server; 3])) {
    inside(name, &["sw", "s1", "s2", "s3"], || {
        sh(&format!(
            "ip link add sw type bridge forward_delay 0 mcast_snooping 0 && \
             ip addr add {STRANGER}/24 dev sw && ip link set sw up"
        ));
        let names = others();
        body([1, 2, 3].map(|n| Server::start(n, &names[usize::from(n) - 1])));
    });
}

impl Server {
    fn start(n: u8, namespace: &str) -> Server {
        let address = Ipv4Addr::new(198, 51, 100, 10 + n);
        sh(&format!(
            "ip link add p{n} type veth peer name up0 netns {namespace} && \
             ip link set p{n} master sw up && ip -n {namespace} link set lo up && \
             ip -n {namespace} addr add {address}/24 dev up0 && \
             ip -n {namespace} link set up0 up && ip -n {namespace} route add default via {STRANGER}"
        ));
        let (jobs, mut queue) = unbounded_channel::<Job>();
        let path = format!("/run/netns/{namespace}");
        std::thread::spawn(move || {
            setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let daemon = Daemon::new(["a", "b", "c"][usize::from(n) - 1]);
                let fabric = daemon.start();
                let mut state = State { daemon, fabric };
                while let Some(job) = queue.recv().await {
                    job(&mut state).await;
                }
            });
        });
        Server { namespace: namespace.to_owned(), address, jobs }
    }

    /// Does something on the server, by its daemon, and waits for it.
    fn on<T: Send + 'static>(
        &self,
        work: impl for<'a> FnOnce(&'a mut State) -> BoxFuture<'a, T> + Send + 'static,
    ) -> T {
        let (sender, receiver) = mpsc::channel();
        let job: Job = Box::new(move |state| {
            let work = work(state);
            Box::pin(async move {
                let result = work.await;
                let _ = sender.send(result);
            })
        });
        self.jobs.send(job).unwrap_or_else(|_| panic!("server {} died", self.address));
        receiver.recv().unwrap_or_else(|_| panic!("server {} died", self.address))
    }

    pub fn try_sync(&self, networks: &[NetworkSpec]) -> Result<(), SyncError> {
        let networks = networks.to_vec();
        self.on(move |s| Box::pin(async move { s.fabric.sync(&networks).await }))
    }

    pub fn sync(&self, networks: &[NetworkSpec]) {
        self.try_sync(networks).unwrap();
    }

    /// The daemon dies and another comes.
    pub fn restart(&self) {
        self.on(|s| {
            Box::pin(async move {
                s.fabric = s.daemon.start();
            })
        });
    }

    pub fn guest(&self, network: &NetworkSpec, lease: &Lease) -> Guest {
        let (network, lease) = (network.clone(), lease.clone());
        self.on(move |s| Box::pin(async move { guest(&s.fabric, &network, &lease).await }))
    }

    /// A machine's tap again, under the id that it has on every server.
    pub fn tap(&self, network: &NetworkSpec, nic: NicId, lease: &Lease) -> Guest {
        let (network, lease) = (network.clone(), lease.clone());
        self.on(move |s| {
            Box::pin(async move {
                let opened = s.fabric.open_tap(network.id, nic, lease.mac, lease.address).await;
                Guest::new(opened.unwrap(), nic, &lease, network.gateway)
            })
        })
    }

    pub fn close(&self, nic: NicId) {
        self.on(move |s| Box::pin(async move { s.fabric.close_tap(nic).await })).unwrap();
    }

    pub fn trunk_mtu(&self, interface: &str) -> Result<u32, String> {
        let untagged = VlanId::new(100);
        let trunk = Trunk { interface: interface.parse().unwrap(), untagged };
        let found = self.on(move |s| Box::pin(async move { s.fabric.trunk_mtu(&trunk).await }));
        found.map_err(|e| e.to_string())
    }

    pub fn overlay_mtu(&self) -> Option<u32> {
        let local = self.address;
        self.on(move |s| Box::pin(async move { s.fabric.overlay_mtu(local).await }))
    }

    /// Steps that a sync would still take.
    pub fn steps_left(&self, networks: &[NetworkSpec]) -> Vec<String> {
        let networks = networks.to_vec();
        self.on(move |s| {
            Box::pin(async move { super::crash::steps_left(&s.fabric, &networks).await })
        })
    }

    /// The first `count` steps of a sync, then the daemon dies. Whether that was all.
    pub fn partly(&self, networks: &[NetworkSpec], count: usize) -> bool {
        let networks = networks.to_vec();
        let all = self.on(move |s| {
            Box::pin(async move { super::crash::partly(&s.fabric, &networks, count).await })
        });
        self.restart();
        all
    }

    pub fn pid(&self, network: &NetworkSpec) -> Option<i32> {
        let network = network.clone();
        self.on(move |s| Box::pin(async move { s.daemon.pid(&network) }))
    }

    pub fn files(&self) -> Vec<String> {
        self.on(|s| Box::pin(async move { s.daemon.files() }))
    }

    pub fn overlay(&self, network: &NetworkSpec) -> String {
        let id = network.id;
        self.on(move |s| Box::pin(async move { s.daemon.instance().overlay(id) }))
    }

    /// Runs a command there.
    pub fn sh(&self, command: &str) -> String {
        sh(&format!("ip netns exec {} sh -c \"{command}\"", self.namespace))
    }

    /// Sends a frame of the network as another program of this server would: from
    /// its address, past all rules for guests.
    pub fn inject(&self, network: &NetworkSpec, to: &Server, frame: &[u8]) {
        let (packet, from, to) = (vxlan(network, frame), self.address, to.address);
        self.on(move |_| {
            Box::pin(async move {
                let socket = UdpSocket::bind((from, 0)).unwrap();
                socket.send_to(&packet, (to, 4789)).unwrap();
            })
        });
    }
}

/// A frame of the network as it is between servers.
pub fn vxlan(network: &NetworkSpec, frame: &[u8]) -> Vec<u8> {
    let vni = network.overlay.as_ref().unwrap().vni.get().to_be_bytes();
    [&[8, 0, 0, 0, vni[1], vni[2], vni[3], 0][..], frame].concat()
}

/// A network that spans the servers, as the first of them sees it.
pub fn spanning(third: u8, servers: &[&Server]) -> NetworkSpec {
    let overlay = Overlay {
        vni: Vni::new(u32::from(third) + 70_000).unwrap(),
        local: servers[0].address,
        port: 4789,
        peers: servers[1..].iter().map(|s| s.address).collect::<BTreeSet<_>>(),
        mtu: 1450,
    };
    NetworkSpec { overlay: Some(overlay), ..network(third) }
}

/// The network as another server sees it.
pub fn seen_by(server: &Server, network: &NetworkSpec) -> NetworkSpec {
    let mut seen = network.clone();
    let was = match (&mut seen.overlay, &mut seen.trunk) {
        (Some(overlay), _) => {
            overlay.peers.insert(overlay.local);
            overlay.peers.remove(&server.address);
            std::mem::replace(&mut overlay.local, server.address)
        }
        (None, trunk) => trunk.as_mut().unwrap().local.replace(server.address).unwrap(),
    };
    for lease in &mut seen.leases {
        let at = lease.at.unwrap_or(was);
        lease.at = (at != server.address).then_some(at);
    }
    seen
}

/// A lease on a server.
pub fn lease_at(network: &mut NetworkSpec, last: u8, server: &Server) -> Lease {
    let mut made = lease(network, last);
    made.at = Some(server.address);
    *network.leases.last_mut().unwrap() = made.clone();
    made
}

/// Says where an interface is and where its machine moves to.
pub fn place(network: &mut NetworkSpec, mac: MacAddr, at: &Server, to: Option<&Server>) {
    let lease = network.leases.iter_mut().find(|l| l.mac == mac).unwrap();
    lease.at = Some(at.address);
    lease.to = to.map(|s| s.address);
}

/// All servers hear of the network as it is now.
pub fn sync_all(servers: &[Server; 3], networks: &[&NetworkSpec]) {
    for server in servers {
        let seen: Vec<_> = networks.iter().map(|n| seen_by(server, n)).collect();
        server.sync(&seen);
    }
}

pub fn new_nic() -> NicId {
    NicId::from_uuid(Uuid::new_v4())
}

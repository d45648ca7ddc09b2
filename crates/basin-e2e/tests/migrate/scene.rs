//! What moves have in common: a cluster with storage, a guest that is busy, and what has
//! to be true of it afterwards.

use std::net::SocketAddr;

use basin_api::datastore::Datastore;
use basin_api::vm::{DiskChoice, NewDisk, VmCreate};
use basin_api::volume::VolumeSource;
use basin_e2e::images::{MIB, add_kernel_words};
use basin_e2e::observe::Collector;
use basin_e2e::{Cluster, Console, GATEWAY, Guest, Server, until};

/// A cluster of so many servers, with storage that all of them share.
#[allow(dead_code, reason = "not every test starts like this")]
pub fn cluster(servers: usize) -> Cluster {
    let cluster = Cluster::start(servers);
    form(&cluster);
    cluster
}

/// Makes a cluster of servers that were started, with storage that all of them share.
pub fn form(cluster: &Cluster) {
    cluster.form();
    let servers = cluster.servers.len();
    let shared = cluster.shared().display().to_string();
    cluster.servers[0].cli(&["datastore", "create", "shared", &shared, "--shared"]).ok();
    for server in &cluster.servers {
        until("every server has proven the shared storage", || {
            let hosts = server.call(server.client().list::<basin_api::host::Host>());
            let stores = server.call(server.client().list::<Datastore>());
            hosts.is_ok_and(|h| h.items.len() == servers)
                && stores.is_ok_and(|d| d.items.len() > servers)
        });
    }
    if servers >= 3 {
        // While there are two votes, the loss of either stops the store.
        let first = &cluster.servers[0];
        until("three servers keep the state", || {
            let seen = first.call(first.client().cluster());
            seen.is_ok_and(|c| c.store.is_some_and(|s| s.members.len() == 3))
        });
    }
}

pub fn disk(datastore: &str) -> NewDisk {
    let source = VolumeSource::Blank { size_bytes: 32 * MIB };
    let datastore = Some(datastore.to_owned());
    let disk = DiskChoice::New { source, format: None, datastore };
    NewDisk { disk, read_only: false, serial: None }
}

/// A collector in the fabric, where a guest's heartbeats go through its server's NAT.
pub fn collector(cluster: &Cluster) -> Collector {
    cluster.fabric.enter(|| Collector::bind(SocketAddr::from((GATEWAY, 0))))
}

/// A guest that sends heartbeats, and writes to each of its disks for ever.
pub struct Busy<'s> {
    pub guest: Guest<'s>,
    pub console: Console,
    pub disks: usize,
}

pub fn busy<'s>(server: &'s Server, mut vm: VmCreate, to: &Collector) -> Busy<'s> {
    add_kernel_words(&mut vm, &format!("micro.run=heartbeat,to={}", to.address));
    let disks = vm.disks.len();
    let guest = server.create(&vm);
    guest.start();
    let mut console = guest.online();
    for n in 0..disks {
        let dev = ["/dev/vda", "/dev/vdb"][n];
        console.send(&format!("guest-tool disk-write dev={dev} blocks=256 every=10 > /tmp/w{n} &"));
        console.run(":");
    }
    for n in 0..disks {
        console.run(&format!("until grep -q acked /tmp/w{n}; do sleep 0.1; done"));
    }
    to.wait_more(50);
    Busy { guest, console, disks }
}

impl Busy<'_> {
    pub fn on(&self) -> String {
        self.guest.vm().status.host.and_then(|h| h.name).unwrap_or_default()
    }

    /// What was acknowledged is there, and nothing else.
    pub fn check_disks(&mut self) {
        self.console.run("killall guest-tool || true; sleep 1");
        for n in 0..self.disks {
            let dev = ["/dev/vda", "/dev/vdb"][n];
            let last = self.console.run(&format!("grep acked /tmp/w{n} | tail -n1"));
            let acked = last.split_whitespace().last().unwrap_or("0").to_owned();
            assert!(acked.parse::<u64>().unwrap_or(0) > 0, "the guest wrote: {last}");
            let checked = self
                .console
                .run(&format!("guest-tool disk-check dev={dev} blocks=256 acked={acked}"));
            assert!(checked.contains("disk: ok"), "{checked}");
        }
    }
}

/// A server has nothing of the VM any more.
pub fn nothing_left(server: &Server, id: &str) {
    until("nothing of the VM is left", || {
        let cgroup = server.place.cgroups().iter().any(|c| c.join(format!("vm-{id}")).exists());
        let note = server.place.run_dir().join("parts").join(format!("{id}.json")).exists();
        !cgroup && !note
    });
}

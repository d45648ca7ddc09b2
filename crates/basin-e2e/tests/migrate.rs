//! Guests move between servers while they run: what is asked of them goes on, nothing
//! acknowledged is lost, they run once, and nothing is left behind.

use std::net::SocketAddr;

use basin_api::datastore::Datastore;
use basin_api::vm::{DiskChoice, Machine, NewDisk, State, Vm, VmCreate};
use basin_api::volume::{Volume, VolumeSource};
use basin_e2e::images::{MIB, add_kernel_words};
use basin_e2e::observe::Collector;
use basin_e2e::{Cluster, Console, GATEWAY, Guest, Server, until};

/// A cluster of so many servers, with storage that all of them share.
fn cluster(servers: usize) -> Cluster {
    let cluster = Cluster::start(servers);
    cluster.form();
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
    cluster
}

fn disk(datastore: &str) -> NewDisk {
    let source = VolumeSource::Blank { size_bytes: 32 * MIB };
    let datastore = Some(datastore.to_owned());
    let disk = DiskChoice::New { source, format: None, datastore };
    NewDisk { disk, read_only: false, serial: None }
}

/// A collector in the fabric, where a guest's heartbeats go through its server's NAT.
fn collector(cluster: &Cluster) -> Collector {
    cluster.fabric.enter(|| Collector::bind(SocketAddr::from((GATEWAY, 0))))
}

/// A guest that sends heartbeats, and writes to each of its disks for ever.
struct Busy<'s> {
    guest: Guest<'s>,
    console: Console,
    disks: usize,
}

fn busy<'s>(server: &'s Server, mut vm: VmCreate, to: &Collector) -> Busy<'s> {
    add_kernel_words(&mut vm, &format!("micro.run=heartbeat,to={}", to.address));
    let disks = vm.disks.len();
    let guest = server.create(&vm);
    guest.start();
    let mut console = guest.online();
    for n in 0..disks {
        let dev = ["/dev/vda", "/dev/vdb"][n];
        console.send(&format!("guest-tool disk-write dev={dev} every=50 > /tmp/w{n} &"));
        console.run(":");
    }
    to.wait_more(50);
    Busy { guest, console, disks }
}

impl Busy<'_> {
    fn on(&self) -> String {
        self.guest.vm().status.host.and_then(|h| h.name).unwrap_or_default()
    }

    /// What was acknowledged is there, and nothing else.
    fn check_disks(&mut self) {
        self.console.run("killall guest-tool || true; sleep 1");
        for n in 0..self.disks {
            let dev = ["/dev/vda", "/dev/vdb"][n];
            let last = self.console.run(&format!("grep acked /tmp/w{n} | tail -n1"));
            let acked = last.split_whitespace().last().unwrap_or("0").to_owned();
            assert!(acked.parse::<u64>().unwrap_or(0) > 0, "the guest wrote: {last}");
            let checked =
                self.console.run(&format!("guest-tool disk-check dev={dev} acked={acked}"));
            assert!(checked.contains("disk: ok"), "{checked}");
        }
    }
}

/// Moves it, as a person would.
fn migrate(server: &Server, vm: &str, more: &[&str]) {
    server.cli(&[&["vm", "migrate", vm][..], more].concat()).ok();
}

/// A server has nothing of the VM any more.
fn nothing_left(server: &Server, id: &str) {
    until("nothing of the VM is left", || {
        let cgroup = server.place.cgroups().iter().any(|c| c.join(format!("vm-{id}")).exists());
        let note = server.place.run_dir().join("parts").join(format!("{id}.json")).exists();
        !cgroup && !note
    });
}

fn moves(machine: Machine, stores: &[&str], storage: &[Option<&str>]) {
    let cluster = cluster(2);
    let collector = collector(&cluster);
    let first = &cluster.servers[0];
    let mut vm = first.micro("mover", machine);
    vm.disks = stores.iter().map(|store| disk(store)).collect();
    let mut busy = busy(first, vm, &collector);
    let id = busy.guest.vm().meta.id;
    collector.forget();
    for to in storage.iter().copied().enumerate() {
        let from = busy.on();
        let (target, at) = if from == "srv1" { ("srv2", 1) } else { ("srv1", 0) };
        let mut more = vec!["--to", target];
        more.extend(to.1.iter().flat_map(|store| ["--storage", store]));
        migrate(first, "mover", &more);
        assert_eq!(busy.on(), target);
        assert_eq!(busy.guest.state(), State::Running);
        collector.wait_more(100);
        nothing_left(&cluster.servers[1 - at], &id);
    }
    let report = collector.report();
    assert_eq!(report.ran_twice, None);
    assert_eq!(report.incarnations.len(), 1, "it was never started anew: {report:?}");
    println!(
        "{machine:?} {stores:?}: longest silence {:?}, lost {}",
        report.longest_silence, report.lost
    );
    // Its console goes on, through the server that does not have it.
    busy.console = Guest::console(&cluster.servers[0].guest("mover"));
    busy.console.run(":");
    busy.check_disks();
    for volume in first.ok(first.client().list::<Volume>()).items {
        let wanted = storage.last().copied().flatten();
        assert!(wanted.is_none_or(|w| volume.datastore.name.as_deref() == Some(w)), "{volume:?}");
    }
    first.guest("mover").delete(true);
    assert!(first.ok(first.client().list::<Vm>()).items.is_empty());
}

#[test]
fn memory_moves_where_disks_are_shared() {
    moves(Machine::Q35, &["shared"], &[None, None]);
}

#[test]
fn disks_move_along_where_they_are_not() {
    moves(Machine::Q35, &["default"], &[Some("default-srv2"), Some("default")]);
}

#[test]
fn one_disk_stays_and_one_moves() {
    moves(Machine::Q35, &["shared", "default"], &[Some("shared"), None]);
}

#[test]
fn a_microvm_moves() {
    moves(Machine::Microvm, &["shared"], &[None, None]);
}

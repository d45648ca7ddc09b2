//! The server that leads dies in the middle of every kind of task, and another one takes
//! over: the task comes to its end, and its progress is told by whoever is asked.
//!
//! Places are those of `workflows.txt`. The dying server only leads: what is worked on is
//! on the other one, so that nothing else is missing.

use std::time::Instant;

use basin_api::client::{ClientError, DeleteVm};
use basin_api::datastore::Datastore;
use basin_api::image::{Image, ImageKind};
use basin_api::reference::List;
use basin_api::task::{Task, TaskState};
use basin_api::vm::{Boot, DiskChoice, Machine, NewDisk, State, Vm, VmCreate};
use basin_api::volume::{Volume, VolumeGrow, VolumeSource, VolumeState};
use basin_e2e::images::{MIB, existing, import, vm, volume};
use basin_e2e::{BOOT, Cluster, Server, eventually, until};

const FAULT: &str = "BASIN_FAULT";

/// What was answered to the operation under which the leader dies.
type Answer = Result<(), String>;

fn answer<T>(of: Result<T, ClientError>) -> Answer {
    of.map(drop).map_err(|e| format!("{e}: {}", e.advice()))
}

/// Two servers, of which the first has the state and dies, and the second goes on.
struct Pair(Cluster);

impl Pair {
    fn new() -> Pair {
        let cluster = Cluster::start_with(2, |_, setup| setup.arg("--engine=fake"));
        cluster.form();
        Pair(cluster)
    }

    fn other(&self) -> &Server {
        &self.0.servers[1]
    }

    /// Has the leader die at a place that the operation leads to.
    fn cut(&self, place: &str, operation: impl FnOnce(&Server) -> Answer) -> Task {
        let [dies, stays] = &self.0.servers[..] else { unreachable!() };
        // Alone, it is elected; its etcd outlives the daemons.
        stays.stop();
        dies.stop();
        dies.set_up(|setup| setup.env(FAULT, place));
        dies.boot();
        // As it says itself; the store may name an earlier daemon of its for a while.
        until("it leads", || dies.leads());
        stays.boot();
        until("the other one knows", || stays.leader().as_deref() == Some("srv1"));
        // It may be lost with the one that dies; a refusal is told should that one live.
        println!("{place}: the answer: {:?}", operation(stays));
        dies.wait_dead();
        let since = Instant::now();
        until("the other one leads", || stays.leads());
        println!("{place}: another one leads after {:?}", since.elapsed());
        let task = eventually(&format!("{place}: the task ends"), BOOT, || over(stays));
        // What the first one knows when it is back is the same.
        dies.set_up(|setup| setup.without_env(FAULT));
        dies.boot();
        assert_eq!(dies.ok(dies.client().get::<Task>(&task.id)).state, task.state);
        let kind = place.split('/').next().unwrap_or_default();
        assert_eq!((task.kind.as_str(), task.state), (kind, TaskState::Done), "{place}: {task:?}");
        task
    }
}

/// The last task, when none is under way.
fn over(server: &Server) -> Option<Task> {
    let tasks: List<Task> = server.call(server.client().tasks(None)).ok()?;
    let ended = |t: &Task| !matches!(t.state, TaskState::Running | TaskState::Undoing);
    if tasks.items.iter().all(ended) { tasks.items.into_iter().next() } else { None }
}

fn exists<R: basin_api::client::Readable>(server: &Server, name: &str) -> bool {
    server.call(server.client().get::<R>(name)).is_ok()
}

/// Where the second server keeps what is its own.
const OWN: &str = "default-srv2";

fn idle(server: &Server, name: &str) -> VmCreate {
    let disk = format!("{name}-disk");
    server.done(server.client().create::<Volume>(&volume(&disk, Some(OWN))));
    let mut idle = vm(name, Machine::Q35, Boot::Bios, 64 * MIB);
    idle.disks = vec![existing(&disk)];
    idle
}

#[test]
fn storage_tasks_come_to_their_end() {
    let pair = Pair::new();
    let server = pair.other();
    pair.cut("volume-create/make/after", |s| {
        answer(s.call(s.client().create::<Volume>(&volume("v", Some(OWN)))))
    });
    let grown = VolumeGrow { size_bytes: 4 * MIB };
    pair.cut("volume-grow/grow/before", |s| answer(s.call(s.client().grow_volume("v", grown))));
    assert_eq!(server.ok(server.client().get::<Volume>("v")).size_bytes, 4 * MIB);
    pair.cut("volume-delete/remove/after", |s| answer(s.call(s.client().delete::<Volume>("v"))));
    assert!(!exists::<Volume>(server, "v"));

    let file = server.place.dir.join("file");
    std::fs::write(&file, vec![7; 2 << 20]).expect("write a file");
    for (name, place) in [("a", "image-import/fetch/before"), ("b", "image-import/tidy/after")] {
        let mut wanted = import(name, ImageKind::Disk, &file);
        wanted.datastore = Some(OWN.to_owned());
        pair.cut(place, |s| answer(s.call(s.client().create::<Image>(&wanted))));
        assert!(exists::<Image>(server, name));
    }
    pair.cut("image-delete/remove/before", |s| answer(s.call(s.client().delete::<Image>("a"))));
    assert!(!exists::<Image>(server, "a"));

    let path = server.place.dir.join("more");
    std::fs::create_dir(&path).expect("make a directory");
    pair.cut("datastore-create/make/after", |s| {
        let path = path.display().to_string();
        Err(format!("{:?}", s.cli(&["datastore", "create", "more", "--path", &path])))
    });
    let made = server.ok(server.client().get::<Datastore>("more"));
    // It is of the server that was asked, whoever led.
    assert_eq!(made.host.and_then(|h| h.name).as_deref(), Some("srv2"));
}

#[test]
fn tasks_of_machines_come_to_their_end() {
    let pair = Pair::new();
    let server = pair.other();
    for (n, place) in ["publish/after", "start/before", "watch/before"].iter().enumerate() {
        let name = format!("m{n}");
        let wanted = VmCreate { start: true, ..idle(server, &name) };
        let place = format!("vm-create/{place}");
        pair.cut(&place, |s| answer(s.call(s.client().create::<Vm>(&wanted))));
        server.guest(&name).wait_state(State::Running);
    }
    pair.cut("vm-power-change/watch/before", |s| {
        answer(s.call(s.client().vm_action("m0", basin_api::client::VmAction::PowerOff)))
    });
    server.guest("m0").wait_state(State::Stopped);
    disks_are_added(&pair, "m0");
    pair.cut("vm-power-on/watch/before", |s| {
        answer(s.call(s.client().vm_action("m0", basin_api::client::VmAction::Start)))
    });
    server.guest("m0").wait_state(State::Running);
    for (name, place) in [("m0", "stop/after"), ("m1", "seal/after"), ("m2", "remove/before")] {
        let how = DeleteVm { force: true, ..DeleteVm::default() };
        pair.cut(&format!("vm-delete/{place}"), |s| {
            answer(s.call(s.client().delete_vm(name, how)))
        });
        assert!(!exists::<Vm>(server, name));
    }
}

/// Each time there is one disk more, which is whole, and no volume that nobody has.
fn disks_are_added(pair: &Pair, vm: &str) {
    let server = pair.other();
    let volumes = || server.ok(server.client().list::<Volume>()).items.len();
    let before = (volumes(), server.guest(vm).vm().disks.len());
    let steps = ["make", "attach"].into_iter().flat_map(|s| ["before", "after"].map(|p| (s, p)));
    for (n, (step, point)) in (1..).zip(steps) {
        let source = VolumeSource::Blank { size_bytes: MIB };
        let datastore = Some(OWN.to_owned());
        let disk = DiskChoice::New { source, format: None, datastore };
        let disk = NewDisk { disk, read_only: false, serial: None };
        pair.cut(&format!("vm-disk-add/{step}/{point}"), |s| {
            answer(s.call(s.client().attach_disk(vm, &disk)))
        });
        let disks = server.guest(vm).vm().disks;
        assert_eq!((volumes(), disks.len()), (before.0 + n, before.1 + n), "{step}/{point}");
        let added = &disks.last().expect("a disk").volume.id;
        let added = server.ok(server.client().get::<Volume>(added));
        assert_eq!(added.state, VolumeState::Ready, "{step}/{point}: {added:?}");
    }
}

/// Asked anywhere, consoles and changes are those of the server that has the machine.
#[test]
fn consoles_and_events_go_through_any_server() {
    let cluster = Cluster::start(3);
    cluster.form();
    let [one, two, three] = &cluster.servers[..] else { unreachable!() };
    until("all know all", || {
        cluster.servers.iter().all(|s| s.host_names() == ["srv1", "srv2", "srv3"])
    });
    let mut events = three.ok(three.client().events(&["vm"], None));
    let wanted = one.micro("run", Machine::Q35);
    let guest = one.create(&wanted);
    guest.start();
    guest.shell().run("echo here >/tmp/mark");
    for server in [two, three] {
        until("it knows the machine", || exists::<Vm>(server, "run"));
        let through = server.guest("run");
        let mut console = through.console();
        assert_eq!(console.run("cat /tmp/mark"), "here");
        assert!(server.cli(&["vm", "log", "run"]).ok().contains("micro#"));
    }
    // It was made, it started, it runs.
    let mut next = || next_event(three, &mut events);
    eventually("it is seen to run", BOOT, || next().contains("running").then_some(()));
    two.guest("run").power_off();
    eventually("it is seen to stop", BOOT, || next().contains("stopped").then_some(()));
}

fn next_event(server: &Server, events: &mut basin_api::client::Events) -> String {
    let next = server.call(async { tokio::time::timeout(BOOT, events.next()).await });
    format!("{:?}", next.expect("an event in time").expect("an event")).to_lowercase()
}

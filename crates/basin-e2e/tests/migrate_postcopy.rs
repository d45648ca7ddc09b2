//! Guests that go over before all of their memory, with disks: their memory and what they
//! have on their disks is right, whoever missed a page.

#[path = "migrate/scene.rs"]
mod scene;

use basin_api::task::{Task, TaskState};
use basin_api::vm::{Machine, State};
use basin_e2e::images::add_kernel_words;
use basin_e2e::observe::Collector;
use basin_e2e::{BOOT, Cluster, Guest, Server, eventually, process, until};
use scene::{Busy, busy, cluster, collector, disk, nothing_left};

/// It rewrites and checks its memory all the time, faster than the link takes it, and
/// writes to two disks.
fn fast<'c>(cluster: &'c Cluster, collector: &Collector) -> Busy<'c> {
    let first = &cluster.servers[0];
    let mut vm = first.micro("mover", Machine::Q35);
    vm.disks = vec![disk("shared"), disk("shared")];
    add_kernel_words(&mut vm, "micro.run=dirty,rate=60,mib=32");
    busy(first, vm, collector)
}

/// Slower than it writes, and it is not slowed down: without post-copy this would not end.
const SLOWLY: [&str; 3] = ["--bandwidth", "12MiB", "--no-throttle"];
/// Slower yet, for what takes time.
const AT_A_CRAWL: [&str; 3] = ["--bandwidth", "4MiB", "--no-throttle"];

/// What is on its disks where nobody has looked yet.
const READ_ANEW: &str = "for d in a b; do dd if=/dev/vd$d of=/dev/null bs=4096 count=1 skip=5000 \
    || exit; done; echo DISKS-''ANSWER";

/// How often blockd of this server got a guest before its memory, as it says.
fn arrived(server: &Server) -> usize {
    let log = std::fs::read_to_string(server.place.state_dir().join("blockd.log"));
    log.unwrap_or_default().matches("the guest's memory is there").count()
}

/// Where it is, where it goes to.
fn sides<'c>(cluster: &'c Cluster, busy: &Busy<'_>) -> (&'c Server, &'c Server, &'static str) {
    match busy.on().as_str() {
        "srv1" => (&cluster.servers[0], &cluster.servers[1], "srv2"),
        _ => (&cluster.servers[1], &cluster.servers[0], "srv1"),
    }
}

/// Its memory is checked twice more from beginning to end.
fn memory_is_right(guest: &Guest<'_>) {
    let passes = guest.log().matches("dirty: pass").count();
    guest.wait_log("dirty: pass", passes + 2);
    let log = guest.log();
    assert!(!log.contains("FAILED"), "{log}");
}

/// It was never started anew, and ran once at a time.
fn ran_once(cluster: &Cluster, busy: &mut Busy<'_>, collector: &Collector) {
    collector.wait_more(50);
    let report = collector.report();
    assert_eq!(report.ran_twice, None);
    assert_eq!(report.incarnations.len(), 1, "{report:?}");
    println!("longest silence {:?}, lost {}", report.longest_silence, report.lost);
    busy.console = Guest::console(&cluster.servers[1].guest("mover"));
    busy.console.run(":");
    busy.check_disks();
}

fn moves(how: &str) {
    let cluster = cluster(2);
    let collector = collector(&cluster);
    let mut busy = fast(&cluster, &collector);
    let id = busy.guest.vm().meta.id;
    for _ in 0..2 {
        let (source, target, name) = sides(&cluster, &busy);
        let before = arrived(target);
        let ask = ["vm", "migrate", "mover", "--to", name, "--postcopy", how];
        source.cli(&[&ask[..], &SLOWLY].concat()).ok();
        assert_eq!(busy.on(), name);
        assert_eq!(arrived(target), before + 2, "both disks were there before its memory");
        memory_is_right(&busy.guest);
        nothing_left(source, &id);
    }
    ran_once(&cluster, &mut busy, &collector);
}

#[test]
fn a_guest_goes_over_before_its_memory() {
    moves("at-once");
}

#[test]
fn a_guest_that_writes_too_fast_goes_over_before_its_memory() {
    moves("fallback");
}

/// Begins a move that takes a while after the guest has gone over; returns once its source
/// says that it has.
fn goes_over(source: &Server, to: &str) -> Task {
    let ask = ["vm", "migrate", "mover", "--to", to, "--postcopy", "at-once", "--detach"];
    source.cli(&[&ask[..], &AT_A_CRAWL].concat()).ok();
    eventually("its memory follows", BOOT, || {
        let tasks = source.call(source.client().list::<Task>()).ok()?.items;
        tasks.into_iter().find(|task| task.message.contains("it runs there"))
    })
}

fn ends(source: &Server, task: &Task) -> Task {
    eventually("the move ends", BOOT, || {
        let task = source.call(source.client().get::<Task>(&task.id)).ok()?;
        (!matches!(task.state, TaskState::Running | TaskState::Undoing)).then_some(task)
    })
}

/// Its disks stand still until all of its memory is there; then they go on.
#[test]
fn the_targets_block_daemon_dies_while_memory_follows() {
    let cluster = cluster(2);
    let collector = collector(&cluster);
    let mut busy = fast(&cluster, &collector);
    let (source, target, name) = sides(&cluster, &busy);
    let task = goes_over(source, name);
    until("it runs there", || busy.on() == name);
    target.kill_blockd();
    let now = source.ok(source.client().get::<Task>(&task.id));
    assert!(matches!(now.state, TaskState::Running), "too late to be of interest: {now:?}");
    let task = ends(source, &task);
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    assert_eq!((busy.on().as_str(), busy.guest.state()), (name, State::Running));
    memory_is_right(&busy.guest);
    ran_once(&cluster, &mut busy, &collector);
}

/// Nobody has all of its memory: it is started again, once, by whoever owns it then.
#[test]
fn the_targets_machine_dies_while_memory_follows() {
    let cluster = cluster(2);
    let collector = collector(&cluster);
    let mut busy = fast(&cluster, &collector);
    let id = busy.guest.vm().meta.id;
    let (source, target, name) = sides(&cluster, &busy);
    let task = goes_over(source, name);
    until("it runs there", || busy.on() == name);
    let cgroups = target.place.cgroups();
    let mut pids = cgroups.iter().flat_map(|c| process::in_cgroup(&c.join(format!("vm-{id}"))));
    process::kill_hard(pids.find(|pid| process::alive(*pid)).expect("its QEMU"));
    ends(source, &task);
    until("it runs again", || collector.report().incarnations.len() == 2);
    collector.wait_more(50);
    nothing_left(source, &id);
    starts_again(&cluster, &mut busy, &collector);
    assert_eq!(busy.on(), name);
}

/// It was started once more, and has what is on its disks.
fn starts_again(cluster: &Cluster, busy: &mut Busy<'_>, collector: &Collector) {
    let report = collector.report();
    assert_eq!(report.ran_twice, None);
    assert_eq!(report.incarnations.len(), 2, "{report:?}");
    busy.console = cluster.servers[1].guest("mover").online();
    for dev in ["/dev/vda", "/dev/vdb"] {
        let checked = busy.console.run(&format!("guest-tool disk-check dev={dev} blocks=256"));
        assert!(checked.contains("disk: ok"), "{checked}");
    }
}

/// In the moment in which the guest starts there, it may lose its disks for good: then it
/// is started again. It may as well not.
#[test]
fn the_targets_block_daemon_dies_as_the_guest_goes_over() {
    let cluster = cluster(2);
    let collector = collector(&cluster);
    let mut busy = fast(&cluster, &collector);
    let (source, target, name) = sides(&cluster, &busy);
    let task = goes_over(source, name);
    target.kill_blockd();
    ends(source, &task);
    let mut console = target.guest("mover").console();
    console.send(READ_ANEW);
    until("its disks answer, or it is started again", || {
        busy.guest.log().contains("DISKS-ANSWER") || collector.report().incarnations.len() == 2
    });
    until("it runs", || busy.guest.state() == State::Running);
    collector.wait_more(50);
    let report = collector.report();
    assert_eq!(report.ran_twice, None);
    println!("{} incarnations, on {}", report.incarnations.len(), busy.on());
    if report.incarnations.len() == 1 {
        return ran_once(&cluster, &mut busy, &collector);
    }
    starts_again(&cluster, &mut busy, &collector);
}

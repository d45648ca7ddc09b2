//! What may befall a move. In the end the guest runs once, somewhere, with all that was
//! acknowledged to it, and nothing of the move is left on the other server.

#[path = "migrate/scene.rs"]
mod scene;

use basin_api::task::{Task, TaskState};
use basin_api::vm::{Machine, State, VmMigrate};
use basin_e2e::images::MIB;
use basin_e2e::observe::Collector;
use basin_e2e::{BOOT, Cluster, Server, eventually, process, until};
use scene::{Busy, busy, cluster, collector, disk, nothing_left};

/// Where a move is cut: what its task says at that moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Disks,
    Memory,
}

/// A guest on the first server on its way to the second, slowly, with a third one that
/// only looks on.
struct Moving<'c> {
    cluster: &'c Cluster,
    collector: Collector,
    busy: Busy<'c>,
    id: String,
    task: String,
}

fn begin(cluster: &Cluster, at: At) -> Moving<'_> {
    let collector = collector(cluster);
    let first = &cluster.servers[0];
    let mut vm = first.micro("mover", Machine::Q35);
    let (own, storage) = match at {
        At::Disks => ("default", Some("default-srv2".to_owned())),
        At::Memory => ("shared", None),
    };
    vm.disks = vec![disk(own)];
    let busy = busy(first, vm, &collector);
    assert_eq!(busy.on(), "srv1", "the first server is the one with its disk, or the emptiest");
    let id = busy.guest.vm().meta.id;
    let how = VmMigrate {
        host: Some("srv2".to_owned()),
        datastore: storage,
        bandwidth_bytes_per_second: Some(4 * MIB),
        ..VmMigrate::default()
    };
    let task = first.ok(first.client().migrate_vm("mover", &how)).id;
    let moving = Moving { cluster, collector, busy, id, task };
    let word = match at {
        At::Disks => "disks:",
        At::Memory => "memory:",
    };
    eventually(&format!("the move is at its {word}"), BOOT, || {
        let task = moving.look(first)?;
        assert!(matches!(task.state, TaskState::Running), "{task:?}");
        let said = &task.message;
        (said.contains(word) && said.contains("left")).then_some(())
    });
    moving
}

impl Moving<'_> {
    fn look(&self, server: &Server) -> Option<Task> {
        server.call(server.client().get::<Task>(&self.task)).ok()
    }

    /// How the task ends.
    fn end(&self) -> Task {
        let server = &self.cluster.servers[0];
        eventually("the move ends", BOOT, || {
            let task = self.look(server)?;
            let over = !matches!(task.state, TaskState::Running | TaskState::Undoing);
            over.then_some(task)
        })
    }

    /// It stayed: it was never started anew, and the target has nothing of it.
    fn stayed(mut self) {
        let task = self.end();
        assert!(matches!(task.state, TaskState::Failed | TaskState::Cancelled), "{task:?}");
        assert_eq!(self.busy.on(), "srv1", "{task:?}");
        self.once(1);
        nothing_left(&self.cluster.servers[1], &self.id);
        self.busy.check_disks();
    }

    /// It moved, and the source has nothing of it.
    fn moved(mut self) {
        let task = self.end();
        assert_eq!(task.state, TaskState::Done, "{task:?}");
        assert_eq!(self.busy.on(), "srv2");
        self.once(1);
        nothing_left(&self.cluster.servers[0], &self.id);
        self.busy.console = self.cluster.servers[2].guest("mover").console();
        self.busy.console.run(":");
        self.busy.check_disks();
    }

    fn once(&self, incarnations: usize) {
        self.collector.wait_more(100);
        assert_eq!(self.busy.guest.state(), State::Running);
        let report = self.collector.report();
        assert_eq!(report.ran_twice, None);
        assert_eq!(report.incarnations.len(), incarnations, "{report:?}");
    }

    fn qemu_of(&self, n: usize) -> u32 {
        let server = &self.cluster.servers[n];
        eventually("a server has a QEMU of it", BOOT, || {
            let cgroups = server.place.cgroups();
            let pids =
                cgroups.iter().flat_map(|c| process::in_cgroup(&c.join(format!("vm-{}", self.id))));
            pids.into_iter().find(|&pid| process::alive(pid))
        })
    }

    fn cancel(&self) {
        let server = &self.cluster.servers[0];
        server.cli(&["task", "cancel", &self.task]).ok();
    }
}

#[test]
fn cancelled_while_memory_goes_over() {
    let cluster = cluster(3);
    let moving = begin(&cluster, At::Memory);
    moving.cancel();
    moving.stayed();
}

#[test]
fn cancelled_while_disks_go_over() {
    let cluster = cluster(3);
    let moving = begin(&cluster, At::Disks);
    moving.cancel();
    moving.stayed();
}

#[test]
fn the_targets_machine_dies() {
    let cluster = cluster(3);
    let moving = begin(&cluster, At::Memory);
    process::kill_hard(moving.qemu_of(1));
    moving.stayed();
}

#[test]
fn the_sources_machine_dies() {
    let cluster = cluster(3);
    let mut moving = begin(&cluster, At::Memory);
    process::kill_hard(moving.qemu_of(0));
    let task = moving.end();
    assert_eq!(task.state, TaskState::Failed, "{task:?}");
    // It is started anew where it was, once.
    until("it runs again", || moving.collector.report().incarnations.len() == 2);
    moving.once(2);
    assert_eq!(moving.busy.on(), "srv1");
    nothing_left(&cluster.servers[1], &moving.id);
    moving.busy.console = moving.busy.guest.online();
    let checked = moving.busy.console.run("guest-tool disk-check dev=/dev/vda blocks=256");
    assert!(checked.contains("disk: ok"), "{checked}");
}

#[test]
fn the_targets_daemon_dies_and_comes_back() {
    let cluster = cluster(3);
    let moving = begin(&cluster, At::Memory);
    cluster.servers[1].kill();
    cluster.servers[1].boot();
    moving.moved();
}

#[test]
fn the_sources_daemon_dies_and_comes_back() {
    let cluster = cluster(3);
    let moving = begin(&cluster, At::Memory);
    cluster.servers[0].kill();
    cluster.servers[0].boot();
    let server = &cluster.servers[2];
    let task = eventually("the move ends", BOOT, || {
        let task = moving.look(server)?;
        (!matches!(task.state, TaskState::Running | TaskState::Undoing)).then_some(task)
    });
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    moving.moved();
}

#[test]
fn the_sources_block_daemon_dies_while_disks_go_over() {
    let cluster = cluster(3);
    let moving = begin(&cluster, At::Disks);
    cluster.servers[0].kill_blockd();
    moving.stayed();
}

/// Its machine there would not connect to the disks any more.
#[test]
fn the_targets_block_daemon_dies_while_memory_goes_over() {
    let cluster = cluster(3);
    let moving = begin(&cluster, At::Memory);
    cluster.servers[1].kill_blockd();
    moving.stayed();
}

#[test]
fn the_link_is_cut_while_disks_go_over() {
    let cluster = cluster(3);
    let moving = begin(&cluster, At::Disks);
    cluster.partition(&[&[0, 2], &[1, 2]]);
    let source = &cluster.servers[0];
    until("the source gives it up", || {
        moving.look(source).is_some_and(|task| task.state != TaskState::Running)
    });
    cluster.heal();
    moving.stayed();
}

#[test]
fn the_target_dies_and_comes_back() {
    let cluster = cluster(3);
    let moving = begin(&cluster, At::Memory);
    cluster.servers[1].die();
    let source = &cluster.servers[0];
    until("the source gives it up", || {
        moving.look(source).is_some_and(|task| task.state != TaskState::Running)
    });
    assert_eq!(moving.busy.on(), "srv1");
    moving.collector.wait_more(100);
    cluster.servers[1].revive();
    moving.stayed();
}

#[test]
fn the_source_dies_and_comes_back() {
    let cluster = cluster(3);
    let mut moving = begin(&cluster, At::Memory);
    cluster.servers[0].die();
    cluster.servers[0].revive();
    let server = &cluster.servers[2];
    let task = eventually("the move ends", BOOT, || {
        let task = moving.look(server)?;
        (!matches!(task.state, TaskState::Running | TaskState::Undoing)).then_some(task)
    });
    assert_eq!(task.state, TaskState::Failed, "{task:?}");
    // The machine died with its server; it is started anew there, once.
    until("it runs again", || moving.collector.report().incarnations.len() == 2);
    moving.once(2);
    nothing_left(&cluster.servers[1], &moving.id);
    moving.busy.console = cluster.servers[2].guest("mover").online();
    let checked = moving.busy.console.run("guest-tool disk-check dev=/dev/vda blocks=256");
    assert!(checked.contains("disk: ok"), "{checked}");
}

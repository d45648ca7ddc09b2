//! The server that leads dies at each place of a move (those of `workflows.txt`). Another
//! one leads the move to its end: the guest has run once all the time, has all that it
//! wrote, and is on one server, of which the others have nothing.

use basin_api::task::{Task, TaskState};
use basin_api::vm::{Machine, State, VmMigrate};
use basin_e2e::images::MIB;
use basin_e2e::observe::Collector;
use basin_e2e::{BOOT, Cluster, Server, eventually, until};

use crate::scene::{Busy, busy, cluster, collector, disk, nothing_left};

const FAULT: &str = "BASIN_FAULT";

/// Who leads when it dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leader {
    /// A server that has no part in the move.
    Third,
    /// The one that has the guest.
    Source,
}

/// A guest that goes to and fro between the first two servers of three.
struct Moves<'c> {
    cluster: &'c Cluster,
    collector: Collector,
    busy: Busy<'c>,
    vm: String,
    /// The datastores of its disk, on the first server and on the second.
    stores: [Option<&'c str>; 2],
}

impl<'c> Moves<'c> {
    fn new(cluster: &'c Cluster, stores: [Option<&'c str>; 2]) -> Moves<'c> {
        let collector = collector(cluster);
        let first = &cluster.servers[0];
        let mut vm = first.micro("mover", Machine::Q35);
        vm.disks = vec![disk(stores[0].unwrap_or("shared"))];
        let busy = busy(first, vm, &collector);
        let vm = busy.guest.vm().meta.id;
        Moves { cluster, collector, busy, vm, stores }
    }

    fn at(&self) -> usize {
        let on = self.busy.on();
        ["srv1", "srv2"].iter().position(|name| *name == on).expect("one of the two")
    }

    fn wish(&self, from: usize, slowly: bool) -> VmMigrate {
        VmMigrate {
            host: Some(format!("srv{}", 2 - from)),
            datastore: self.stores[1 - from].map(str::to_owned),
            bandwidth_bytes_per_second: slowly.then_some(4 * MIB),
            ..VmMigrate::default()
        }
    }

    /// The leader dies there, and the move comes to its end.
    fn cut(&self, leader: Leader, place: &str) {
        let (cluster, from) = (self.cluster, self.at());
        let n = if leader == Leader::Third { 2 } else { from };
        let (dies, asked) = (&cluster.servers[n], &cluster.servers[1 - from]);
        let before = last_task(asked);
        cluster.have_lead(n, |setup| setup.without_env(FAULT).env(FAULT, place));
        let taken_back = place.contains("/undo-");
        // It may be lost with the one that dies; a refusal is told should that one live.
        let answer = asked.call(asked.client().migrate_vm("mover", &self.wish(from, taken_back)));
        println!("{leader:?} {place}: {:?}", answer.as_ref().map(|task| &task.id));
        if taken_back {
            let task = answer.expect("nothing has befallen it yet").id;
            eventually("the guest is on its way", BOOT, || {
                let task = asked.call(asked.client().get::<Task>(&task)).ok()?;
                assert_eq!(task.state, TaskState::Running, "{task:?}");
                task.message.contains("memory:").then_some(())
            });
            // (The command waits for the end, and that may wait for the source.)
            let told = asked.call(asked.client().cancel_task(&task));
            println!("{place}: cancelled: {:?}", told.map(|task| task.state));
        }
        dies.wait_dead();
        let others: Vec<&Server> =
            (0..3).filter(|o| *o != n).map(|o| &cluster.servers[o]).collect();
        until("another one leads", || others.iter().any(|server| server.leads()));
        if leader == Leader::Source {
            // It is a part of the move.
            dies.set_up(|setup| setup.without_env(FAULT));
            dies.boot();
        }
        let task = eventually(&format!("{place}: the move ends"), BOOT, || {
            last_task(asked).filter(|task| {
                task.state.is_over() && Some(&task.id) != before.as_ref().map(|b| &b.id)
            })
        });
        let state = task.state;
        let expect = match taken_back {
            true => TaskState::Cancelled,
            // Nothing is done yet when both are asked, and the source does not answer.
            false if leader == Leader::Source && place.contains("/check/") => state,
            false => TaskState::Done,
        };
        assert_eq!((task.kind.as_str(), state), ("vm-migrate", expect), "{place}: {task:?}");
        let to = if state == TaskState::Done { 1 - from } else { from };
        assert_eq!(self.at(), to, "{place}: {task:?}");
        self.once(to, place);
    }

    /// It runs there, once, and nothing of it is anywhere else.
    fn once(&self, on: usize, place: &str) {
        assert_eq!(self.busy.guest.state(), State::Running, "{place}");
        self.collector.wait_more(50);
        let report = self.collector.report();
        assert_eq!(report.ran_twice, None, "{place}");
        assert_eq!(report.incarnations.len(), 1, "{place}: {report:?}");
        let disks = self.busy.guest.vm().disks;
        let mut names = vec![self.vm.as_str()];
        let moved = self.stores[0].is_some();
        names.extend(disks.iter().map(|d| d.volume.id.as_str()).filter(|_| moved));
        for (n, server) in self.cluster.servers.iter().enumerate().filter(|(n, _)| *n != on) {
            nothing_left(server, &self.vm);
            server.no_trace(&names, 0, &format!("{place}: srv{}", n + 1));
        }
    }

    fn end(mut self) {
        self.busy.console = self.cluster.servers[1].guest("mover").console();
        self.busy.console.run(":");
        self.busy.check_disks();
    }
}

fn last_task(server: &Server) -> Option<Task> {
    let tasks = server.call(server.client().tasks(None)).ok()?;
    tasks.items.into_iter().next()
}

#[test]
fn a_third_server_leads_a_move_along_with_its_disk() {
    let cluster = cluster(3);
    let moves = Moves::new(&cluster, [Some("default"), Some("default-srv2")]);
    for step in ["check", "announce", "prepare", "transfer", "tidy"] {
        for point in ["before", "after"] {
            moves.cut(Leader::Third, &format!("vm-migrate/{step}/{point}"));
        }
    }
    for step in ["prepare", "announce"] {
        for point in ["undo-before", "undo-after"] {
            moves.cut(Leader::Third, &format!("vm-migrate/{step}/{point}"));
        }
    }
    moves.end();
}

#[test]
fn the_source_leads_its_own_move() {
    let cluster = cluster(3);
    let moves = Moves::new(&cluster, [None, None]);
    // The images it boots from are at its source alone; from now on both servers have them.
    cluster.servers[0].cli(&["vm", "migrate", "mover", "--to", "srv2"]).ok();
    // Where it matters that the source's daemon dies as well; the others are tried above.
    for place in
        ["announce/after", "transfer/before", "transfer/after", "tidy/after", "prepare/undo-after"]
    {
        moves.cut(Leader::Source, &format!("vm-migrate/{place}"));
    }
    moves.end();
}

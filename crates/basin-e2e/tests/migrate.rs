//! Guests move between servers while they run: what is asked of them goes on, nothing
//! acknowledged is lost, they run once, and nothing is left behind.

#[path = "migrate/scene.rs"]
mod scene;

use basin_api::vm::{Machine, State, Vm};
use basin_api::volume::Volume;
use basin_e2e::Guest;
use scene::{busy, cluster, collector, disk, nothing_left};

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
        first.cli(&[&["vm", "migrate", "mover"][..], &more].concat()).ok();
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

//! Guests move between servers while they run: what is asked of them goes on, nothing
//! acknowledged is lost, they run once, and nothing is left behind.

#[path = "migrate/scene.rs"]
mod scene;

use basin_api::image::ImageKind;
use basin_api::vm::{Boot, DiskChoice, Machine, State, Vm};
use basin_api::volume::Volume;
use basin_e2e::images::add_kernel_words;
use basin_e2e::{Guest, images};
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

/// A guest that rewrites memory and checks it, page by page; moved there and back.
fn dirty_moves(rate: u32) {
    let cluster = cluster(2);
    let collector = collector(&cluster);
    let first = &cluster.servers[0];
    let mut vm = first.micro("mover", Machine::Q35);
    vm.disks = vec![disk("shared")];
    add_kernel_words(&mut vm, &format!("micro.run=dirty,rate={rate},mib=32"));
    let mut busy = busy(first, vm, &collector);
    for _ in 0..2 {
        let target = if busy.on() == "srv1" { "srv2" } else { "srv1" };
        first.cli(&["vm", "migrate", "mover", "--to", target]).ok();
        assert_eq!(busy.on(), target);
        let passes = busy.guest.log().matches("dirty: pass").count();
        busy.guest.wait_log("dirty: pass", passes + 2);
    }
    let log = busy.guest.log();
    assert!(!log.contains("FAILED"), "{log}");
    assert_eq!(collector.report().ran_twice, None);
    busy.console = Guest::console(&cluster.servers[1].guest("mover"));
    busy.console.run(":");
    busy.check_disks();
}

#[test]
fn memory_that_changes_all_the_time_arrives_as_it_is() {
    dirty_moves(60);
}

/// With a disk that reads through to an image, and firmware with variables of its own.
#[test]
fn a_whole_system_under_uefi_moves() {
    let cluster = cluster(2);
    let first = &cluster.servers[0];
    first.import("debian", ImageKind::Disk, &images::debian_disk());
    let mut vm = first.debian("deb", Boot::Uefi, "");
    vm.cloud_init = None;
    if let DiskChoice::New { datastore, .. } = &mut vm.disks[0].disk {
        *datastore = Some("shared".to_owned());
    }
    let guest = first.create(&vm);
    guest.start();
    guest.console().expect("login:");
    let from = guest.vm().status.host.and_then(|h| h.name);
    let to = if from.as_deref() == Some("srv1") { "srv2" } else { "srv1" };
    first.cli(&["vm", "migrate", "deb", "--to", to]).ok();
    // It answers on its console, and reads what it has not read yet.
    let mut console = guest.console();
    console.send("nobody");
    console.expect("Password:");
    assert_eq!(guest.state(), State::Running);
    guest.power_off();
}

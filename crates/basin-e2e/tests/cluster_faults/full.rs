//! A move along with its disk, to storage that is full, or becomes full on the way.

use std::path::Path;

use basin_api::task::{Task, TaskState};
use basin_api::vm::{Machine, State, VmMigrate};
use basin_e2e::images::MIB;
use basin_e2e::{BOOT, Server, eventually};

use crate::scene::{busy, cluster, collector, disk, nothing_left};

/// A file system of its own for a server, with room for a disk of 32 MiB.
fn small_disk(server: &Server, dir: &Path) {
    let dir = dir.display();
    server.sh(&format!(
        "mkdir {dir} && truncate -s 64M {dir}.img && mkfs.ext4 -q -m0 -O ^has_journal {dir}.img \
         && mount -o loop {dir}.img {dir} && mountpoint -q {dir} && rmdir {dir}/lost+found"
    ));
}

/// Not a block more fits.
fn fill(server: &Server, dir: &Path) {
    let dir = dir.display();
    server.sh(&format!(
        "mountpoint -q {dir} && for size in 1M 4k 1k; do \
         dd if=/dev/zero bs=$size of={dir}/filler oflag=append conv=notrunc 2>/dev/null; done; sync"
    ));
}

#[test]
fn storage_that_is_full_keeps_a_guest_where_it_is() {
    let cluster = cluster(2);
    let [one, two] = &cluster.servers[..] else { unreachable!() };
    let small = two.place.dir.join("small");
    small_disk(two, &small);
    let path = small.display().to_string();
    two.cli(&["datastore", "create", "small", "--path", &path]).ok();

    let collector = collector(&cluster);
    let mut vm = one.micro("mover", Machine::Q35);
    vm.disks = vec![disk("default")];
    let mut busy = busy(one, vm, &collector);
    assert_eq!(busy.on(), "srv1");
    // Something to copy, behind what it writes all the time.
    busy.console.run("dd if=/dev/urandom of=/dev/vda bs=1M seek=8 count=20 conv=notrunc && sync");
    let [id, volume] = {
        let vm = busy.guest.vm();
        [vm.meta.id, vm.disks[0].volume.id.clone()]
    };

    let how = VmMigrate {
        host: Some("srv2".to_owned()),
        datastore: Some("small".to_owned()),
        bandwidth_bytes_per_second: Some(4 * MIB),
        ..VmMigrate::default()
    };
    let task = one.ok(one.client().migrate_vm("mover", &how)).id;
    let look = || one.ok(one.client().get::<Task>(&task));
    eventually("its disk is on its way", BOOT, || {
        let task = look();
        assert_eq!(task.state, TaskState::Running, "{task:?}");
        (task.message.contains("disks:") && task.message.contains("left")).then_some(())
    });
    fill(two, &small);
    let task = eventually("the move ends", BOOT, || Some(look()).filter(|t| t.state.is_over()));
    assert_eq!(task.state, TaskState::Failed, "{task:?}");
    let problem = task.problem.expect("why it failed");
    println!("{}\n{}", problem.detail, problem.advice);
    for word in ["'small'", "srv2", "full", "It runs on, on srv1"] {
        assert!(problem.detail.contains(word), "'{word}' is not in: {}", problem.detail);
    }
    assert!(problem.advice.contains("space"), "{}", problem.advice);
    let stayed = |when: &str| {
        assert_eq!(busy.on(), "srv1", "{when}");
        assert_eq!(busy.guest.state(), State::Running, "{when}");
        collector.wait_more(50);
        let report = collector.report();
        assert_eq!((report.ran_twice, report.incarnations.len()), (None, 1), "{when}");
        nothing_left(two, &id);
        two.no_trace(&[&id, &volume], 0, when);
        let left = two.sh(&format!("find {path} -name '*{volume}*'"));
        assert_eq!(left, "", "{when}");
    };
    stayed("it became full");

    // What is known before is said before, and nothing is begun.
    let refused = one.cli(&["vm", "migrate", "mover", "--to", "srv2", "--storage", "small"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    for word in ["32 MiB on datastore 'small'", "are free", "make space on that one"] {
        assert!(refused.stderr.contains(word), "'{word}' is not in: {}", refused.stderr);
    }
    stayed("it was full");
    busy.check_disks();

    // With room again, it goes.
    two.sh(&format!("rm {path}/filler"));
    one.cli(&["vm", "migrate", "mover", "--to", "srv2", "--storage", "small"]).ok();
    assert_eq!(busy.on(), "srv2");
    busy.console = one.guest("mover").console();
    let checked = busy.console.run("guest-tool disk-check dev=/dev/vda blocks=256");
    assert!(checked.contains("disk: ok"), "{checked}");
    one.no_trace(&[&id, &volume], 0, "it has moved");
}

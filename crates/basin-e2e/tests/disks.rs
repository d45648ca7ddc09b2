//! Disks: what guests wrote is there, whatever happens to the I/O daemon.

use basin_api::datastore::{Datastore, DatastoreCreate};
use basin_api::image::ImageKind;
use basin_api::reference::{Labels, List};
use basin_api::vm::{Machine, Vm};
use basin_api::volume::{CloneKind, Volume, VolumeCreate, VolumeFormat, VolumeGrow, VolumeSource};
use basin_e2e::images::{MIB, blank, existing, new_disk};
use basin_e2e::{BOOT, Console, Server, eventually};

/// The numbers of the writes that a guest has seen acknowledged, a file a disk.
struct Writers<'c>(&'c mut Console);

impl Writers<'_> {
    fn start(&mut self, disk: &str) {
        self.0.run(&format!(
            "{{ guest-tool disk-write dev=/dev/{disk} blocks=256 >/tmp/{disk} 2>&1 & }}; \
             echo $! >/tmp/{disk}.pid"
        ));
    }

    fn acked(&mut self, disk: &str) -> u64 {
        let line = self.0.run(&format!("tail -n 1 /tmp/{disk}"));
        assert!(!line.contains("FAILED"), "{disk}: {line}");
        line.strip_prefix("disk: acked ").and_then(|n| n.parse().ok()).unwrap_or(0)
    }

    fn progress(&mut self, disk: &str) {
        let from = self.acked(disk);
        eventually(&format!("{disk} is written on"), BOOT, || {
            (self.acked(disk) > from + 20).then_some(())
        });
    }

    /// Stops the writer; how many writes were acknowledged.
    fn stop(&mut self, disk: &str) -> u64 {
        self.0.run(&format!("kill -9 $(cat /tmp/{disk}.pid)"));
        self.acked(disk)
    }
}

fn check_disk(shell: &mut Console, disk: &str, acked: u64) {
    let said =
        shell.run(&format!("guest-tool disk-check dev=/dev/{disk} blocks=256 acked={acked}"));
    assert!(said.contains("disk: ok newest="), "{said}");
}

#[test]
fn no_acknowledged_write_is_lost_when_blockd_is_killed() {
    let server = Server::start();
    let base = server.place.dir.join("base.raw");
    std::fs::write(&base, vec![0; 16 * MIB as usize]).unwrap();
    server.import("base", ImageKind::Disk, &base);
    let mut vm = server.micro("w", Machine::Q35);
    let (image, clone) = ("base".to_owned(), CloneKind::Linked);
    let linked = VolumeSource::Image { image, clone, size_bytes: None };
    vm.disks = vec![blank(16 * MIB), new_disk(linked)];
    let guest = server.create(&vm);
    let formats: Vec<_> = guest.vm().disks.iter().map(|d| d.format).collect();
    assert_eq!(formats, [VolumeFormat::Raw, VolumeFormat::Qcow2]);
    guest.start();
    let mut shell = guest.shell();
    let mut writers = Writers(&mut shell);
    for disk in ["vda", "vdb"] {
        writers.start(disk);
    }
    for _ in 0..4 {
        for disk in ["vda", "vdb"] {
            writers.progress(disk);
        }
        server.kill_blockd();
    }
    // The daemon itself is no part of this.
    server.kill();
    server.boot();
    let mut shell = guest.console();
    for disk in ["vda", "vdb"] {
        Writers(&mut shell).progress(disk);
    }
    let acked = ["vda", "vdb"].map(|disk| (disk, Writers(&mut shell).stop(disk)));
    for (disk, acked) in acked {
        check_disk(&mut shell, disk, acked);
    }
    let (_, errors) = shell.try_run("dmesg | grep -i -e 'I/O error' -e 'blk_update_request'");
    assert_eq!(errors, "");

    // What is on the disk is what another boot finds.
    guest.shut_down(120);
    guest.start();
    guest.wait_boot(2);
    let mut shell = guest.console();
    for (disk, acked) in acked {
        check_disk(&mut shell, disk, acked);
    }
}

fn volume(name: &str, source: VolumeSource, datastore: Option<&str>) -> VolumeCreate {
    VolumeCreate {
        name: name.to_owned(),
        description: String::new(),
        labels: Labels::new(),
        source,
        format: None,
        datastore: datastore.map(str::to_owned),
    }
}

#[test]
fn clones_sizes_serials_and_read_only_disks() {
    let server = Server::start();
    let client = server.client();
    let random = server.place.dir.join("random.raw");
    server.sh(&format!("head -c 8M /dev/urandom > {}", random.display()));
    server.import("random", ImageKind::Disk, &random);
    let clone = |clone| VolumeSource::Image { image: "random".to_owned(), clone, size_bytes: None };
    server.done(client.create::<Volume>(&volume("full", clone(CloneKind::Full), None)));
    server.done(client.create::<Volume>(&volume("linked", clone(CloneKind::Linked), None)));
    let copy = VolumeSource::Volume {
        volume: "full".to_owned(),
        clone: CloneKind::Full,
        size_bytes: None,
    };
    server.done(client.create::<Volume>(&volume("copy", copy, None)));

    let mut vm = server.micro("c", Machine::Q35);
    vm.disks = ["full", "linked", "copy"].map(existing).to_vec();
    vm.disks[0].serial = Some("Serial-0.1".to_owned());
    vm.disks[2].read_only = true;
    let guest = server.create(&vm);
    let in_use = server.why_not_deleted("full");
    assert!(in_use.contains("c"), "{in_use}");
    guest.start();
    let mut shell = guest.shell();
    assert_eq!(shell.run("cat /sys/block/vda/serial"), "Serial-0.1");
    shell.run("cmp /dev/vda /dev/vdb && cmp /dev/vda /dev/vdc");
    assert_eq!(shell.run("cat /sys/block/vdc/ro"), "1");
    let (status, said) = shell.try_run("dd if=/dev/zero of=/dev/vdc bs=4096 count=1 conv=fsync");
    assert_ne!(status, 0, "{said}");
    // A write to a clone stays there.
    shell.run("echo basin | dd of=/dev/vdb conv=fsync,notrunc");
    shell.run("cmp /dev/vda /dev/vdc");
    assert_ne!(shell.try_run("cmp /dev/vda /dev/vdb").0, 0);
    guest.shut_down(120);

    for name in ["full", "linked"] {
        server.done(client.grow_volume(name, VolumeGrow { size_bytes: 12 * MIB }));
    }
    guest.start();
    guest.wait_boot(2);
    let mut shell = guest.console();
    for disk in ["vda", "vdb"] {
        let size = shell.run(&format!("cat /sys/block/{disk}/size"));
        assert_eq!(size, (12 * MIB / 512).to_string());
    }
    assert_eq!(shell.run("head -c 5 /dev/vdb"), "basin");
    // What was added reads as zeroes.
    shell.run("tail -c 4194304 /dev/vda >/tmp/a; head -c 4194304 /dev/zero | cmp - /tmp/a");
    shell.run("tail -c 4194304 /dev/vdb >/tmp/a; head -c 4194304 /dev/zero | cmp - /tmp/a");
    guest.delete(true);
    // Volumes that existed before the VM outlive it.
    assert_eq!(server.ok(client.list::<Volume>()).items.len(), 3);
}

trait Refusals {
    fn why_not_deleted(&self, volume: &str) -> String;
}

impl Refusals for Server {
    /// Why a volume that is attached cannot be deleted.
    fn why_not_deleted(&self, volume: &str) -> String {
        let refused = self.refused(self.client().delete::<Volume>(volume));
        assert_eq!(refused.code, "in-use");
        refused.detail
    }
}

#[test]
fn a_datastore_refuses_before_it_overflows() {
    let server = Server::start();
    let client = server.client();
    let path = server.place.dir.join("small");
    let datastore = DatastoreCreate {
        name: "small".to_owned(),
        description: String::new(),
        labels: Labels::new(),
        path: path.display().to_string(),
        host: None,
        shared: false,
        quota_bytes: Some(64 * MIB),
        overcommit_percent: Some(100),
    };
    server.ok(client.create::<Datastore>(&datastore));
    let blank = |size_bytes| VolumeSource::Blank { size_bytes };
    server.done(client.create::<Volume>(&volume("a", blank(48 * MIB), Some("small"))));
    let refused =
        server.refused(client.create::<Volume>(&volume("b", blank(32 * MIB), Some("small"))));
    assert_eq!((refused.status, refused.code.as_str()), (507, "no-space"));
    assert!(refused.detail.contains("small") && !refused.advice.is_empty(), "{refused:?}");
    let grown = server.refused(client.grow_volume("a", VolumeGrow { size_bytes: 96 * MIB }));
    assert_eq!(grown.code, "no-space");

    // A VM whose second disk does not fit gets neither.
    let mut vm = server.micro("v", Machine::Q35);
    vm.disks = vec![basin_e2e::images::blank(MIB), basin_e2e::images::blank(32 * MIB)];
    if let basin_api::vm::DiskChoice::New { datastore, .. } = &mut vm.disks[1].disk {
        *datastore = Some("small".to_owned());
    }
    assert_eq!(server.refused(client.create::<Vm>(&vm)).code, "no-space");
    let volumes = server.ok(client.list::<Volume>()).items;
    assert_eq!(volumes.iter().map(|v| v.meta.name.as_str()).collect::<Vec<_>>(), ["a"]);
    let files = std::fs::read_dir(path.join("volumes")).unwrap().count();
    assert_eq!(files, 1);
    server.done(client.delete::<Volume>("a"));
    server.done(client.create::<Volume>(&volume("b", blank(32 * MIB), Some("small"))));
}

#[test]
fn a_datastore_is_shared_or_local_as_the_command_says() {
    let server = Server::start();
    let path = |name: &str| server.place.dir.join(name).display().to_string();
    let (nfs, fast, old) = (path("nfs"), path("fast"), path("old"));
    server.cli(&["datastore", "create", "nfs", "--path", &nfs, "--shared"]).ok();
    server.cli(&["datastore", "create", "old", &old]).ok();
    let hosts: List<basin_api::host::Host> = server.ok(server.client().list());
    let host = &hosts.items[0].meta.name;
    server.cli(&["datastore", "create", "fast", "--path", &fast, "--host", host]).ok();
    let nobody = ["datastore", "create", "x", "--path", &fast, "--host", "nobody"];
    let refused = server.cli(&nobody);
    assert!(refused.code != 0 && refused.stderr.contains("nobody"), "{}", refused.stderr);
    for both in
        [vec!["datastore", "create", "x"], vec!["datastore", "create", "x", "/a", "--path", "/b"]]
    {
        assert_eq!(server.cli(&both).code, 2, "{both:?}: a path, once");
    }
    let shown = eventually("it is checked", BOOT, || {
        let shown = server.cli(&["datastore", "show", "nfs"]).ok();
        shown.contains("1 of 1 servers").then_some(shown)
    });
    assert!(shown.contains("REACHES") && shown.contains(host), "{shown}");
    let list = server.cli(&["datastore", "list"]).ok();
    assert!(list.lines().any(|l| l.starts_with("fast") && l.contains(host)), "{list}");
}

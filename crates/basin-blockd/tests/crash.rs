//! kill -9 of blockd at any time: the front end goes on, every acknowledged write
//! is there, and every request is answered exactly once.

mod support;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use basin_blockd::control::{Export, Layer};
use basin_model::volume::VolumeFormat::Qcow2;
use support::driver::*;
use support::{Daemon, path_str, pattern, sh, until};

const SIZE: u64 = 32 << 20;
/// Each slot of each queue writes to a place of its own.
const PLACE: u64 = DATA / 512;

struct Load {
    guest: Guest,
    /// The last seed that was acknowledged and the one that is under way, by place.
    acked: HashMap<u64, u64>,
    open: HashMap<(usize, u16), (u64, u64)>,
    seed: u64,
}

impl Load {
    fn fill(&mut self, q: usize) {
        while let Some(slot) = self.guest.free_slot(q) {
            self.seed += 1;
            let place = (q as u64 * u64::from(SLOTS) + u64::from(slot)) % (SIZE / DATA);
            let len = [512, 4096, 65536][(self.seed % 3) as usize];
            let bytes = pattern(self.seed, len);
            let sent = self.guest.send(q, WRITE, place * PLACE, Data::Out(&bytes));
            assert_eq!(sent, slot);
            self.open.insert((q, slot), (place, self.seed));
        }
    }

    fn reap(&mut self, q: usize) {
        for answer in self.guest.reap(q) {
            assert_eq!(answer.status, 0, "an I/O error reached the guest");
            let (place, seed) = self.open.remove(&(q, answer.slot)).unwrap();
            self.acked.insert(place, seed);
        }
    }
}

fn check_kills(daemon: &mut Daemon, export: &Export, kills: u32) {
    daemon.open(export);
    let mut load =
        Load { guest: Guest::new(2), acked: HashMap::new(), open: HashMap::new(), seed: 0 };
    let mut link = load.guest.connect(&export.socket);
    for round in 0..kills {
        let end = Instant::now() + Duration::from_millis(20 + u64::from(round * 7 % 40));
        let enough = load.seed + 64;
        while Instant::now() < end || load.seed < enough {
            for q in 0..2 {
                load.fill(q);
                link.kick(q);
                load.reap(q);
            }
        }
        // With requests under way, and some that were never seen.
        for q in 0..2 {
            load.fill(q);
            link.kick(q);
        }
        daemon.kill();
        drop(link);
        daemon.launch();
        link = load.guest.connect(&export.socket);
    }
    until("all answers", || {
        (0..2).for_each(|q| load.reap(q));
        load.open.is_empty().then_some(())
    });
    assert_eq!(load.guest.strays(), 0, "answers that nobody asked for");
    for (place, seed) in &load.acked {
        let len = [512, 4096, 65536][(seed % 3) as usize];
        let read = link.read(&mut load.guest, place * PLACE, len).unwrap();
        assert!(read == pattern(*seed, len), "the acknowledged write to place {place} is lost");
    }
}

#[test]
fn a_raw_disk_survives_the_death_of_its_server() {
    let mut daemon = Daemon::start();
    let export = daemon.raw("raw", SIZE);
    check_kills(&mut daemon, &export, 15);
}

#[test]
fn a_qcow2_disk_survives_the_death_of_its_server() {
    let mut daemon = Daemon::start();
    let path = daemon.path("q.qcow2");
    sh("qemu-img", &["create", "-q", "-f", "qcow2", path_str(&path), "32M"]);
    let export = daemon.export("q", vec![Layer { path: path.clone(), format: Qcow2 }]);
    check_kills(&mut daemon, &export, 8);
    daemon.close(&export);
    // Clusters may have leaked; nothing may be wrong.
    let out = std::process::Command::new("qemu-img").arg("check").arg(&path).output().unwrap();
    assert!(matches!(out.status.code(), Some(0 | 3)), "{}", String::from_utf8_lossy(&out.stdout));
}

#[test]
fn what_was_flushed_before_the_kill_is_in_the_qcow2_file() {
    let mut daemon = Daemon::start();
    let path = daemon.path("f.qcow2");
    sh("qemu-img", &["create", "-q", "-f", "qcow2", path_str(&path), "32M"]);
    let export = daemon.export("f", vec![Layer { path, format: Qcow2 }]);
    daemon.open(&export);
    let mut guest = Guest::new(1);
    let mut link = guest.connect(&export.socket);
    for n in 0..20u64 {
        assert_eq!(link.write(&mut guest, n * 256, &pattern(n, 4096)), 0);
    }
    assert_eq!(link.flush(&mut guest), 0);
    daemon.kill();
    drop(link);
    daemon.launch();
    link = guest.connect(&export.socket);
    for n in 0..20u64 {
        assert_eq!(link.read(&mut guest, n * 256, 4096).unwrap(), pattern(n, 4096));
    }
}

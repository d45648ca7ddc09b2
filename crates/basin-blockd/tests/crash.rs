//! kill -9 of blockd at any time: the front end goes on, every acknowledged write
//! is there, and every request is answered exactly once.

mod support;

use std::time::{Duration, Instant};

use basin_blockd::control::{Export, Layer};
use basin_model::volume::VolumeFormat::Qcow2;
use support::driver::*;
use support::load::Load;
use support::{Daemon, path_str, pattern, sh, until};

const SIZE: u64 = 32 << 20;

fn check_kills(daemon: &mut Daemon, export: &Export, kills: u32) {
    daemon.open(export);
    let mut load = Load::new(Guest::new(2), SIZE);
    let mut link = load.guest.connect(&export.socket);
    for round in 0..kills {
        let end = Instant::now() + Duration::from_millis(20 + u64::from(round * 7 % 40));
        let enough = load.seed + 64;
        while Instant::now() < end || load.seed < enough {
            load.fill_all(&link);
            load.reap_all();
        }
        // With requests under way, and some that were never seen.
        load.fill_all(&link);
        daemon.kill();
        drop(link);
        daemon.launch();
        link = load.guest.connect(&export.socket);
    }
    until("all answers", || load.all_answered().then_some(()));
    load.verify(&link);
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

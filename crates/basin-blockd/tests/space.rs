//! A full datastore: the guest waits, and nothing is lost.

mod support;

use std::fs::File;
use std::path::{Path, PathBuf};

use basin_blockd::control::Layer;
use basin_model::volume::VolumeFormat::{self, Qcow2, Raw};
use support::driver::*;
use support::{Daemon, path_str, pattern, sh, until};

/// A small file system in memory, gone with the value.
struct Mount(PathBuf);

impl Mount {
    fn new(at: PathBuf) -> Mount {
        std::fs::create_dir(&at).unwrap();
        sh("mount", &["-t", "tmpfs", "-o", "size=4m", "tmpfs", path_str(&at)]);
        Mount(at)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a killed blockd may hold it for a moment.
        sh("umount", &["-l", path_str(&self.0)]);
    }
}

fn check_full(format: VolumeFormat, make: impl FnOnce(&Path)) {
    let daemon = Daemon::start();
    let mount = Mount::new(daemon.path("mnt"));
    let path = mount.0.join("disk");
    make(&path);
    let ballast = mount.0.join("ballast");
    std::fs::write(&ballast, vec![1; 3_600_000]).unwrap();
    let export = daemon.export("full", vec![Layer { path, format }]);
    daemon.open(&export);
    let mut guest = Guest::new(1);
    let link = guest.connect(&export.socket);
    // 16 writes of 64 KiB and their like do not fit into what is left.
    for n in 0..u64::from(SLOTS) {
        guest.send(0, WRITE, n * 256, Data::Out(&pattern(n, 65536)));
    }
    link.kick(0);
    let mut answered = Vec::new();
    let why = until("the disk to stall", || {
        answered.extend(guest.reap(0));
        daemon.state(&export).unwrap().stalled
    });
    assert!(why.contains("no space left"), "{why}");
    assert!(guest.open_requests(0) > 0);
    std::fs::remove_file(&ballast).unwrap();
    until("the answers", || {
        answered.extend(guest.reap(0));
        (guest.open_requests(0) == 0).then_some(())
    });
    assert!(answered.iter().all(|a| a.status == 0), "{answered:?}");
    for n in 0..u64::from(SLOTS) {
        assert_eq!(link.read(&mut guest, n * 256, 65536).unwrap(), pattern(n, 65536));
    }
    assert_eq!(link.write(&mut guest, 0, &[1; 512]), 0);
    assert_eq!(daemon.state(&export).unwrap().stalled, None);
    drop(link);
    daemon.close(&export);
    drop(daemon);
    drop(mount);
}

#[test]
fn a_raw_disk_waits_for_space() {
    check_full(Raw, |path| File::create(path).unwrap().set_len(8 << 20).unwrap());
}

#[test]
fn a_qcow2_disk_waits_for_space() {
    check_full(Qcow2, |path| {
        sh("qemu-img", &["create", "-q", "-f", "qcow2", path_str(path), "8M"]);
    });
}

#[test]
fn a_stalled_disk_can_be_restarted_and_closed() {
    let mut daemon = Daemon::start();
    let mount = Mount::new(daemon.path("mnt"));
    let path = mount.0.join("disk");
    File::create(&path).unwrap().set_len(8 << 20).unwrap();
    let ballast = mount.0.join("ballast");
    std::fs::write(&ballast, vec![1; 3_900_000]).unwrap();
    let export = daemon.export("full", vec![Layer { path, format: Raw }]);
    daemon.open(&export);
    let mut guest = Guest::new(1);
    let link = guest.connect(&export.socket);
    for n in 0..8 {
        guest.send(0, WRITE, n * 256, Data::Out(&pattern(n, 65536)));
    }
    link.kick(0);
    until("the disk to stall", || daemon.state(&export).unwrap().stalled);
    daemon.kill();
    drop(link);
    daemon.launch();
    let link = guest.connect(&export.socket);
    until("the disk to stall again", || daemon.state(&export).unwrap().stalled);
    // The front end leaves with requests waiting, and comes back to them.
    drop(link);
    until("the disconnection", || daemon.state(&export).filter(|s| !s.connected));
    std::fs::remove_file(&ballast).unwrap();
    let link = guest.connect(&export.socket);
    let mut answered = Vec::new();
    until("the answers", || {
        answered.extend(guest.reap(0));
        (guest.open_requests(0) == 0).then_some(())
    });
    assert!(answered.iter().all(|a| a.status == 0), "{answered:?}");
    assert_eq!(guest.strays(), 0);
    assert_eq!(link.read(&mut guest, 256, 65536).unwrap(), pattern(1, 65536));
    drop(link);
    daemon.close(&export);
    drop(daemon);
    drop(mount);
}

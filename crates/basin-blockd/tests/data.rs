//! What a guest writes it reads, whatever the disk is made of.

mod support;

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use basin_blockd::control::Layer;
use basin_model::volume::VolumeFormat::{Qcow2, Raw};
use support::driver::*;
use support::{Daemon, path_str, pattern, sh, until};

const SIZE: u64 = 16 << 20;

fn check_disk(daemon: &Daemon, export: &basin_blockd::control::Export) {
    daemon.open(export);
    let mut guest = Guest::new(2);
    let mut link = guest.connect(&export.socket);
    assert_eq!(link.capacity(), SIZE);
    let (a, b) = (pattern(1, 65536), pattern(2, 4096));
    assert_eq!(link.write(&mut guest, 0, &a), 0);
    assert_eq!(link.write(&mut guest, 16, &b), 0);
    assert_eq!(link.write(&mut guest, SIZE / 512 - 1, &b[..512]), 0);
    assert_eq!(link.flush(&mut guest), 0);
    let mut expect = a;
    expect[8192..12288].copy_from_slice(&b);
    assert_eq!(link.read(&mut guest, 0, 65536).unwrap(), expect);
    assert_eq!(link.read(&mut guest, SIZE / 512 - 1, 512).unwrap(), b[..512]);
    assert_eq!(link.read(&mut guest, 1024, 4096).unwrap(), [0; 4096]);

    assert_eq!(link.clear(&mut guest, WRITE_ZEROES, 1, 6, 0), 0);
    assert_eq!(link.clear(&mut guest, WRITE_ZEROES, 8, 8, 1), 0);
    expect[512..3584].fill(0);
    expect[4096..8192].fill(0);
    assert_eq!(link.read(&mut guest, 0, 65536).unwrap(), expect);
    assert_eq!(link.clear(&mut guest, DISCARD, 0, 128, 0), 0);
    assert_eq!(link.read(&mut guest, 0, 65536).map(|_| ()), Ok(()));

    // Past the end, parts of sectors, unknown types.
    assert_eq!(link.write(&mut guest, SIZE / 512, &b[..512]), 1);
    assert_eq!(link.write(&mut guest, SIZE / 512 - 1, &b[..1024]), 1);
    assert_eq!(link.read(&mut guest, u64::MAX, 512), Err(1));
    assert_eq!(link.read(&mut guest, 0, 100), Err(1));
    assert_eq!(link.run(&mut guest, 0, 77, 0, Data::None).status, 2);

    // The second queue serves as the first does.
    let answer = link.run(&mut guest, 1, READ, 16, Data::In(512));
    assert_eq!(answer.status, 0);
    let answer = link.run(&mut guest, 1, GET_ID, 0, Data::In(20));
    assert_eq!(answer.status, 0);
    let id = guest.bytes(Guest::places(1, answer.slot).1, 20);
    assert_eq!(id.trim_ascii_end().split(|b| *b == 0).next(), Some(export.serial.as_bytes()));

    let stats = daemon.state(export).unwrap().stats;
    assert!(stats.errors >= 5 && stats.writes >= 5 && stats.flushes == 1 && stats.discards == 1);
    drop(link);
    daemon.close(export);
    assert!(!export.socket.exists());
}

#[test]
fn a_raw_disk() {
    let daemon = Daemon::start();
    check_disk(&daemon, &daemon.raw("raw", SIZE));
}

#[test]
fn a_raw_disk_where_direct_io_is_not_to_be_had() {
    let daemon = Daemon::start();
    let shm = tempfile::Builder::new().prefix("bd").tempfile_in("/dev/shm").unwrap();
    shm.as_file().set_len(SIZE).unwrap();
    let layers = vec![Layer { path: shm.path().to_owned(), format: Raw }];
    check_disk(&daemon, &daemon.export("shm", layers));
}

#[test]
fn a_qcow2_disk() {
    let daemon = Daemon::start();
    let path = daemon.path("q.qcow2");
    sh("qemu-img", &["create", "-q", "-f", "qcow2", path_str(&path), "16M"]);
    check_disk(&daemon, &daemon.export("q", vec![Layer { path: path.clone(), format: Qcow2 }]));
    sh("qemu-img", &["check", "-q", path_str(&path)]);
}

#[test]
fn reads_fall_through_the_layers_of_the_export_alone() {
    let daemon = Daemon::start();
    let [base, middle, top, other] =
        ["base.raw", "m.qcow2", "t.qcow2", "other.raw"].map(|n| daemon.path(n));
    let raw = File::create(&base).unwrap();
    raw.set_len(SIZE).unwrap();
    raw.write_all_at(&pattern(7, 1 << 20), 0).unwrap();
    File::create(&other).unwrap().write_all_at(&pattern(8, SIZE as usize), 0).unwrap();
    let create = |path, below, format| {
        sh(
            "qemu-img",
            &[
                "create",
                "-q",
                "-f",
                "qcow2",
                "-b",
                path_str(below),
                "-F",
                format,
                path_str(path),
                "16M",
            ],
        );
    };
    create(&middle, &base, "raw");
    sh("qemu-io", &["-c", "write -P 0x55 65536 65536", path_str(&middle)]);
    // The header names a file that is not of the export: it is not looked at.
    create(&top, &other, "raw");
    let layers = vec![
        Layer { path: top.clone(), format: Qcow2 },
        Layer { path: middle.clone(), format: Qcow2 },
        Layer { path: base.clone(), format: Raw },
    ];
    let export = daemon.export("chain", layers);
    daemon.open(&export);
    let mut guest = Guest::new(2);
    let link = guest.connect(&export.socket);
    assert_eq!(link.read(&mut guest, 0, 65536).unwrap(), pattern(7, 65536));
    assert_eq!(link.read(&mut guest, 128, 65536).unwrap(), [0x55; 65536]);
    assert_eq!(link.write(&mut guest, 130, &[9; 1024]), 0);
    assert_eq!(link.flush(&mut guest), 0);
    let mut expect = [0x55; 65536];
    expect[1024..2048].fill(9);
    assert_eq!(link.read(&mut guest, 128, 65536).unwrap(), expect);
    drop(link);
    daemon.close(&export);
    // What is below did not change.
    let mut head = vec![0; 1 << 20];
    File::open(&base).unwrap().read_exact_at(&mut head, 0).unwrap();
    assert_eq!(head, pattern(7, 1 << 20));
    assert!(
        sh("qemu-io", &["-r", "-c", "read -P 0x55 65536 65536", path_str(&middle)])
            .contains("read")
    );
}

#[test]
fn a_read_only_disk_is_not_written() {
    let daemon = Daemon::start();
    let mut export = daemon.raw("ro", SIZE);
    export.read_only = true;
    daemon.open(&export);
    let mut guest = Guest::new(2);
    let link = guest.connect(&export.socket);
    assert_eq!(link.write(&mut guest, 0, &[1; 512]), 1);
    assert_eq!(link.clear(&mut guest, DISCARD, 0, 8, 0), 1);
    assert_eq!(link.clear(&mut guest, WRITE_ZEROES, 0, 8, 0), 1);
    assert_eq!(link.flush(&mut guest), 0);
    assert_eq!(link.read(&mut guest, 0, 512).unwrap(), [0; 512]);
}

#[test]
fn a_discard_gives_the_space_back() {
    let daemon = Daemon::start();
    let export = daemon.raw("thin", SIZE);
    let blocks = || std::fs::metadata(&export.layers[0].path).unwrap().blocks();
    daemon.open(&export);
    let mut guest = Guest::new(2);
    let link = guest.connect(&export.socket);
    for n in 0..16 {
        assert_eq!(link.write(&mut guest, n * 128, &pattern(n, 65536)), 0);
    }
    assert_eq!(link.flush(&mut guest), 0);
    let full = blocks();
    assert_eq!(link.clear(&mut guest, DISCARD, 0, 16 * 128, 0), 0);
    assert_eq!(link.flush(&mut guest), 0);
    assert!(blocks() + 1024 < full, "{} blocks of {full} are left", blocks());
}

#[test]
fn buffers_may_lie_anyhow() {
    // Addresses and lengths that direct I/O does not take.
    let daemon = Daemon::start();
    let export = daemon.raw("odd", SIZE);
    daemon.open(&export);
    let mut guest = Guest::new(2);
    let link = guest.connect(&export.socket);
    let bytes = pattern(3, 1024);
    let (header, buffer, status) = Guest::places(0, 0);
    for (kind, flags) in [(WRITE, 1u16), (READ, 1 | 2)] {
        let mut h = kind.to_le_bytes().to_vec();
        h.extend([0; 4]);
        h.extend(4u64.to_le_bytes());
        guest.put(header, &h);
        if kind == WRITE {
            guest.put(buffer + 3, &bytes);
        } else {
            guest.put(buffer + 3, &[0; 1024]);
        }
        // 1 + 600 + 423 bytes, odd addresses.
        guest.put_descriptor(0, 0, GPA + header, 16, 1, 1);
        guest.put_descriptor(0, 1, GPA + buffer + 3, 1, flags, 2);
        guest.put_descriptor(0, 2, GPA + buffer + 4, 600, flags, 3);
        guest.put_descriptor(0, 3, GPA + buffer + 604, 423, flags, 4);
        guest.put_descriptor(0, 4, GPA + status, 1, 2, 0);
        guest.put(status, &[0xee]);
        guest.offer(0, 0);
        link.kick(0);
        until("the answer", || (guest.answers_waiting(0) == 1).then_some(()));
        guest.reap(0);
        assert_eq!(guest.bytes(status, 1), [0]);
    }
    assert_eq!(guest.bytes(buffer + 3, 1024), bytes);
    assert_eq!(link.read(&mut guest, 4, 1024).unwrap(), bytes);
}

#[test]
fn the_driver_is_told_when_it_asks() {
    let daemon = Daemon::start();
    let export = daemon.raw("call", SIZE);
    daemon.open(&export);
    for features in [FEATURES, FEATURES & !EVENT_IDX, FEATURES & !FLUSH] {
        let mut guest = Guest::new(1);
        let link = guest.connect_with(&export.socket, features);
        for _ in 0..3 {
            // used_event of the driver is 0 throughout: only the first passes it.
            assert_eq!(link.write(&mut guest, 0, &[1; 512]), 0);
        }
        until("a call", || link.called(0).then_some(()));
    }
}

#[test]
fn a_migration_learns_what_was_written() {
    use std::os::fd::AsRawFd;
    use vhost::{VhostBackend, VhostUserDirtyLogRegion};
    let daemon = Daemon::start();
    let export = daemon.raw("log", SIZE);
    daemon.open(&export);
    let mut guest = Guest::new(1);
    let link = guest.connect_with(&export.socket, FEATURES);
    let len = ((GPA + (8 << 20)) / 4096 / 8).next_multiple_of(4096);
    let flags = nix::sys::memfd::MFdFlags::MFD_ALLOW_SEALING;
    let log = File::from(nix::sys::memfd::memfd_create("log", flags).unwrap());
    log.set_len(len).unwrap();
    let region =
        VhostUserDirtyLogRegion { mmap_size: len, mmap_offset: 0, mmap_handle: log.as_raw_fd() };
    link.front.set_log_base(0, Some(region)).unwrap();
    link.front.set_features(FEATURES | LOG_ALL).unwrap();
    link.set_addresses(&guest, 0, true);
    let dirty = |gpa: u64| {
        let mut byte = [0];
        log.read_exact_at(&mut byte, gpa / 4096 / 8).unwrap();
        byte[0] & 1 << (gpa / 4096 % 8) != 0
    };
    let answer = link.run(&mut guest, 0, READ, 0, Data::In(8192));
    let (_, buffer, status) = Guest::places(0, answer.slot);
    assert!(dirty(GPA + buffer) && dirty(GPA + buffer + 4096) && dirty(GPA + status));
    assert!(dirty(GPA + 0x2000), "the used ring");
    assert!(!dirty(GPA + buffer + 8192) && !dirty(GPA), "nothing else");
}

//! What the daemon may ask, and what it is told when it may not.

mod support;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::process::Command;

use basin_blockd::control::{ErrorCode, Layer};
use basin_model::Generation;
use basin_model::volume::VolumeFormat::{Qcow2, Raw};
use support::driver::*;
use support::{Daemon, path_str, refusal, sh, until};

const SIZE: u64 = 4 << 20;

#[test]
fn opening_twice_changes_nothing() {
    let daemon = Daemon::start();
    let export = daemon.raw("d", SIZE);
    daemon.open(&export);
    let mut guest = Guest::new(1);
    let link = guest.connect(&export.socket);
    daemon.open(&export);
    assert_eq!(link.flush(&mut guest), 0);
    let mut changed = export.clone();
    changed.read_only = true;
    let (code, message) = daemon.open_error(&changed);
    assert_eq!(code, ErrorCode::Invalid);
    assert!(message.contains("close it first"), "{message}");
    assert_eq!(link.flush(&mut guest), 0);
    daemon.close(&export);
    daemon.close(&export);
}

#[test]
fn a_newer_generation_cuts_the_older_off() {
    let daemon = Daemon::start();
    let mut export = daemon.raw("d", SIZE);
    export.generation = Generation(5);
    daemon.open(&export);
    let mut guest = Guest::new(1);
    let link = guest.connect(&export.socket);
    assert_eq!(link.write(&mut guest, 0, &[7; 4096]), 0);

    let older = basin_blockd::control::Export { generation: Generation(4), ..export.clone() };
    assert_eq!(daemon.open_error(&older).0, ErrorCode::Fenced);
    let refused = refusal(daemon.ask(async |c| c.close(older.volume, older.generation).await));
    assert_eq!(refused.0, ErrorCode::Fenced);
    assert_eq!(link.flush(&mut guest), 0, "the holder is not disturbed");

    let newer = basin_blockd::control::Export { generation: Generation(6), ..export.clone() };
    daemon.open(&newer);
    guest.send(0, WRITE, 0, Data::Out(&[8; 4096]));
    link.kick(0);
    let mut heir = Guest::new(1);
    let link = heir.connect(&newer.socket);
    assert_eq!(link.read(&mut heir, 0, 4096).unwrap(), [7; 4096]);
    assert_eq!(guest.answers_waiting(0), 0, "the older front end still writes");
    assert_eq!(daemon.open_error(&export).0, ErrorCode::Fenced);
}

#[test]
fn a_disk_in_use_elsewhere_is_locked() {
    let daemon = Daemon::start();
    let export = daemon.raw("d", SIZE);
    daemon.open(&export);
    let mut twin = export.clone();
    twin.volume = support::volume("twin");
    twin.socket = daemon.run_dir().join("twin.s");
    let (code, message) = daemon.open_error(&twin);
    assert_eq!(code, ErrorCode::Locked);
    assert!(message.contains("in use"), "{message}");
    assert!(!twin.socket.exists());
    let path = path_str(&export.layers[0].path);
    let qemu =
        Command::new("qemu-io").args(["-f", "raw", "-c", "write 0 512", path]).output().unwrap();
    assert!(!qemu.status.success(), "qemu-io wrote to a disk in use");
    daemon.close(&export);
    sh("qemu-io", &["-f", "raw", "-c", "write 0 512", path]);
    // A file is one volume's.
    let (code, message) = daemon.open_error(&twin);
    assert_eq!(code, ErrorCode::Invalid);
    assert!(message.contains("belongs to volume"), "{message}");
    std::fs::remove_file(format!("{path}.generation")).unwrap();
    daemon.open(&twin);
}

#[test]
fn layers_below_are_shared() {
    let daemon = Daemon::start();
    let base = daemon.path("base.raw");
    File::create(&base).unwrap().set_len(SIZE).unwrap();
    let open = |name: &str| {
        let top = daemon.path(&format!("{name}.qcow2"));
        sh(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", "-b", path_str(&base), "-F", "raw", path_str(&top)],
        );
        let export = daemon.export(
            name,
            vec![Layer { path: top, format: Qcow2 }, Layer { path: base.clone(), format: Raw }],
        );
        daemon.open(&export);
    };
    open("a");
    open("b");
    let writer = daemon.export("w", vec![Layer { path: base.clone(), format: Raw }]);
    assert_eq!(daemon.open_error(&writer).0, ErrorCode::Locked);
}

#[test]
fn what_is_no_disk_is_refused_with_the_reason() {
    let daemon = Daemon::start();
    let make = |name: &str, bytes: &[u8]| {
        let path = daemon.path(name);
        File::create(&path).unwrap().write_all(bytes).unwrap();
        path
    };
    let qcow2 = |path| daemon.export("x", vec![Layer { path, format: Qcow2 }]);
    let check = |export, code, what: &str| {
        let (got, message) = daemon.open_error(&export);
        assert_eq!(got, code, "{message}");
        assert!(message.contains(what), "{message:?} does not mention {what:?}");
        assert!(daemon.state(&export).is_none() && !export.socket.exists());
    };
    check(qcow2(daemon.path("absent")), ErrorCode::NotFound, "absent");
    check(qcow2(make("zeros", &[0; 65536])), ErrorCode::Corrupt, "begin");
    check(qcow2(make("short", b"QFI\xfb")), ErrorCode::Corrupt, "shorter");
    check(qcow2(daemon.dir.path().to_owned()), ErrorCode::Io, "cannot open");

    let cut = daemon.path("cut.qcow2");
    sh("qemu-img", &["create", "-q", "-f", "qcow2", path_str(&cut), "64M"]);
    File::options().write(true).open(&cut).unwrap().set_len(4096).unwrap();
    check(qcow2(cut), ErrorCode::Corrupt, "truncated");

    let base = make("base.raw", &[1; 65536]);
    let linked = daemon.path("linked.qcow2");
    sh(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-b", path_str(&base), "-F", "raw", path_str(&linked)],
    );
    check(qcow2(linked), ErrorCode::Corrupt, "names none");

    let external = daemon.path("ext.qcow2");
    let data = format!("data_file={}", path_str(&daemon.path("ext.data")));
    sh("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &data, path_str(&external), "1M"]);
    check(qcow2(external), ErrorCode::Corrupt, "external");

    let mut many = daemon.raw("many", SIZE);
    many.queues = 65;
    check(many.clone(), ErrorCode::Invalid, "65 queues");
    many.queues = 1;
    many.serial = "a".repeat(21);
    check(many.clone(), ErrorCode::Invalid, "serial");
    many.serial.clear();
    many.layers.clear();
    check(many.clone(), ErrorCode::Invalid, "layer");
    many.layers = vec![Layer { path: "relative".into(), format: Raw }];
    check(many, ErrorCode::Invalid, "absolute");
}

#[test]
fn a_corrupt_table_fails_requests_and_no_more() {
    let daemon = Daemon::start();
    let path = daemon.path("c.qcow2");
    sh("qemu-img", &["create", "-q", "-f", "qcow2", path_str(&path), "4M"]);
    sh("qemu-io", &["-c", "write 0 1M", path_str(&path)]);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let mut at = [0; 8];
    file.read_exact_at(&mut at, 40).unwrap();
    // The L1 table's first entry: into nowhere, at an address that none can have.
    file.write_all_at(&0xffff_ffff_ffff_ffffu64.to_be_bytes(), u64::from_be_bytes(at)).unwrap();
    drop(file);
    let export = daemon.export("c", vec![Layer { path, format: Qcow2 }]);
    let good = daemon.raw("good", SIZE);
    daemon.open(&good);
    if daemon.ask(async |c| c.open(&export).await).is_ok() {
        let mut guest = Guest::new(1);
        let link = guest.connect(&export.socket);
        assert_eq!(link.read(&mut guest, 0, 4096), Err(1));
        assert_eq!(link.write(&mut guest, 0, &[1; 4096]), 1);
    }
    let mut guest = Guest::new(1);
    let link = guest.connect(&good.socket);
    assert_eq!(link.flush(&mut guest), 0);
}

#[test]
fn the_guest_learns_of_a_new_size() {
    use vhost::vhost_user::VhostUserFrontend;
    let daemon = Daemon::start();
    let raw = daemon.raw("d", SIZE);
    let path = daemon.path("q.qcow2");
    sh("qemu-img", &["create", "-q", "-f", "qcow2", path_str(&path), "4M"]);
    let qcow2 = daemon.export("q", vec![Layer { path, format: Qcow2 }]);
    for export in [raw, qcow2] {
        daemon.open(&export);
        let mut guest = Guest::new(1);
        let mut link = guest.connect(&export.socket);
        let (ours, theirs) = UnixStream::pair().unwrap();
        link.front.set_backend_request_fd(&theirs).unwrap();
        if export.layers[0].format == Raw {
            let (code, _) = refusal(daemon.resize(&export, 2 * SIZE));
            assert_eq!(code, ErrorCode::Invalid, "the file has not grown yet");
            File::options()
                .write(true)
                .open(&export.layers[0].path)
                .unwrap()
                .set_len(2 * SIZE)
                .unwrap();
        }
        daemon.resize(&export, 2 * SIZE).unwrap();
        let mut header = [0; 12];
        std::io::Read::read_exact(&mut &ours, &mut header).unwrap();
        assert_eq!(header[..4], 2u32.to_ne_bytes(), "a change of the configuration");
        assert_eq!(link.capacity(), 2 * SIZE);
        let last = 2 * SIZE / 512 - 8;
        assert_eq!(link.write(&mut guest, last, &[5; 4096]), 0);
        assert_eq!(link.read(&mut guest, last, 4096).unwrap(), [5; 4096]);
    }
}

#[test]
fn sockets_belong_to_the_user_of_the_vm() {
    let daemon = Daemon::start();
    let mut export = daemon.raw("d", SIZE);
    export.uid = 1_900_000_777;
    daemon.open(&export);
    let socket = std::fs::metadata(&export.socket).unwrap();
    assert_eq!((socket.uid(), socket.permissions().mode() & 0o777), (1_900_000_777, 0o600));
    let control = std::fs::metadata(daemon.run_dir().join("control.sock")).unwrap();
    assert_eq!(control.permissions().mode() & 0o777, 0o600);
    let run = std::fs::metadata(daemon.run_dir()).unwrap();
    assert_eq!(run.permissions().mode() & 0o777, 0o711);
}

#[test]
fn one_daemon_a_run_directory() {
    let daemon = Daemon::start();
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join("examples/blockd");
    let second = Command::new(program).arg(daemon.run_dir()).output().unwrap();
    assert!(!second.status.success());
    let message = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(message.contains("another blockd"), "{message}");
    daemon.ask(async |c| c.hello().await).unwrap();
}

#[test]
fn quitting_waits_for_the_last_front_end() {
    let mut daemon = Daemon::start();
    let export = daemon.raw("d", SIZE);
    daemon.open(&export);
    let mut guest = Guest::new(1);
    let link = guest.connect(&export.socket);
    daemon.ask(async |c| c.quit().await).unwrap();
    assert_eq!(link.write(&mut guest, 0, &[3; 512]), 0);
    assert_eq!(daemon.ask(async |c| c.hello().await).unwrap().pid, daemon.pid());
    drop(link);
    assert!(daemon.wait_for_end());
    // Its successor serves the same.
    daemon.launch();
    let link = guest.connect(&export.socket);
    assert_eq!(link.read(&mut guest, 0, 512).unwrap(), [3; 512]);
}

#[test]
fn an_export_whose_file_is_away_comes_back_with_it() {
    let mut daemon = Daemon::start();
    let export = daemon.raw("d", SIZE);
    daemon.open(&export);
    daemon.kill();
    let away = daemon.path("away");
    std::fs::rename(&export.layers[0].path, &away).unwrap();
    daemon.launch();
    let why = daemon.state(&export).unwrap().stalled.unwrap();
    assert!(why.contains("not served") && why.contains("No such file"), "{why}");
    std::fs::rename(&away, &export.layers[0].path).unwrap();
    until("the disk", || daemon.state(&export).filter(|s| s.stalled.is_none()));
    let mut guest = Guest::new(1);
    assert_eq!(guest.connect(&export.socket).flush(&mut guest), 0);
}

#[test]
fn lines_that_are_no_requests_are_answered() {
    let daemon = Daemon::start();
    let mut stream = UnixStream::connect(daemon.run_dir().join("control.sock")).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    for bad in ["", "{}", "[1,2", "{\"request\":\"fly\"}", "\u{0}"] {
        stream.write_all(format!("{bad}\n").as_bytes()).unwrap();
        let reply = lines.next().unwrap().unwrap();
        assert!(reply.contains("\"invalid\""), "{reply}");
    }
    stream.write_all(b"{\"request\":\"hello\"}\n").unwrap();
    assert!(lines.next().unwrap().unwrap().contains("\"version\""));
}

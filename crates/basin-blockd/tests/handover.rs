//! A disk goes from one blockd to another that sees the same file, under load: every
//! write that was acknowledged is there, nobody writes who may not, and a hand-over
//! can be called off at any time.

mod support;

use std::time::Duration;

use basin_blockd::control::{ErrorCode, Export, Held, Layer};
use basin_model::Generation;
use basin_model::volume::VolumeFormat::{self, Qcow2, Raw};
use support::driver::*;
use support::load::Load;
use support::{Daemon, path_str, pattern, refusal, sh, until};

const SIZE: u64 = 32 << 20;

/// The same disk as another server serves it for the next owner.
fn incoming(at: &Daemon, export: &Export) -> Export {
    Export {
        generation: export.generation.next(),
        socket: at.run_dir().join("incoming.s"),
        held: Held::WhileRunning,
        ..export.clone()
    }
}

fn make(daemon: &Daemon, format: VolumeFormat) -> Export {
    match format {
        Raw => daemon.raw("disk", SIZE),
        Qcow2 => {
            let path = daemon.path("disk.qcow2");
            sh("qemu-img", &["create", "-q", "-f", "qcow2", path_str(&path), "32M"]);
            daemon.export("disk", vec![Layer { path, format }])
        }
    }
}

fn hold(daemon: &Daemon, export: &Export, held: Held) {
    daemon.ask(async |c| c.hold(export.volume, export.generation, held).await).unwrap();
}

fn await_release(daemon: &Daemon, export: &Export) {
    let limit = Duration::from_secs(60);
    daemon
        .ask(async |c| c.await_release(export.volume, export.generation, false, limit).await)
        .unwrap();
}

/// There and back several times, as a VM that moves between two servers.
fn check_moves(format: VolumeFormat, moves: u64) {
    let daemons = [Daemon::start(), Daemon::start()];
    let mut export = make(&daemons[0], format);
    daemons[0].open(&export);
    let mut load = Load::new(Guest::new(2), SIZE);
    let mut link = load.guest.connect(&export.socket);
    for n in 1..=moves {
        let (source, target) = (&daemons[(n as usize + 1) % 2], &daemons[n as usize % 2]);
        hold(source, &export, Held::WhileRunning);
        let next = incoming(target, &export);
        target.open(&next);
        assert!(!target.state(&next).unwrap().holds);
        assert_eq!(target.state(&next).unwrap().size.get(), SIZE);
        load.work(&link, 200);
        // The guest's memory is handed over, and its device goes on over there. The
        // requests that are under way end here or are taken up there.
        load.fill_all(&link);
        let bases = link.stop(2);
        load.reap_all();
        link = load.guest.connect_at(&next.socket, &bases);
        load.work(&link, 200);
        until("the answers", || load.all_answered().then_some(()));
        await_release(source, &export);
        let state = source.state(&export).unwrap();
        assert!(!state.holds && !state.running);
        assert!(target.state(&next).unwrap().holds);
        load.verify(&link);
        // The loser cannot have it back, whatever it tries.
        source.close(&export);
        let (code, message) = source.open_error(&export);
        assert!(matches!(code, ErrorCode::Fenced | ErrorCode::Locked), "{message}");
        hold(target, &next, Held::Always);
        export = next;
    }
    drop(link);
    daemons[moves as usize % 2].close(&export);
    let path = path_str(&export.layers[0].path);
    if format == Qcow2 {
        sh("qemu-img", &["check", "-q", path]);
    }
}

#[test]
fn a_raw_disk_moves_under_load() {
    check_moves(Raw, 6);
}

#[test]
fn a_qcow2_disk_moves_under_load() {
    check_moves(Qcow2, 4);
}

#[test]
fn a_hand_over_that_is_called_off_leaves_the_disk_where_it_was() {
    let daemons = [Daemon::start(), Daemon::start()];
    let export = make(&daemons[0], Qcow2);
    daemons[0].open(&export);
    let mut load = Load::new(Guest::new(2), SIZE);
    let link = load.guest.connect(&export.socket);
    let next = incoming(&daemons[1], &export);
    for after_stop in [false, true] {
        hold(&daemons[0], &export, Held::WhileRunning);
        daemons[1].open(&next);
        load.work(&link, 100);
        if after_stop {
            let bases = link.stop(2);
            await_release(&daemons[0], &export);
            daemons[1].close(&next);
            link.start(&load.guest, &bases);
        } else {
            daemons[1].close(&next);
        }
        hold(&daemons[0], &export, Held::Always);
        load.work(&link, 100);
        assert!(daemons[0].state(&export).unwrap().holds);
    }
    until("the answers", || load.all_answered().then_some(()));
    load.verify(&link);
}

#[test]
fn a_target_that_starts_too_early_waits_and_says_why() {
    let daemons = [Daemon::start(), Daemon::start()];
    let export = make(&daemons[0], Raw);
    daemons[0].open(&export);
    let mut guest = Guest::new(1);
    let link = guest.connect(&export.socket);
    assert_eq!(link.write(&mut guest, 0, &[7; 4096]), 0);
    hold(&daemons[0], &export, Held::WhileRunning);
    let next = incoming(&daemons[1], &export);
    daemons[1].open(&next);
    let mut heir = Guest::new(1);
    let early = heir.connect(&next.socket);
    heir.send(0, READ, 0, Data::In(4096));
    early.kick(0);
    let why = until("the reason", || daemons[1].state(&next).unwrap().stalled);
    assert!(why.contains("not held") && why.contains("in use"), "{why}");
    assert_eq!(link.write(&mut guest, 0, &[8; 4096]), 0, "the source is not disturbed");
    link.stop(1);
    let answers = until("the answer", || {
        let a = heir.reap(0);
        (!a.is_empty()).then_some(a)
    });
    assert_eq!(answers[0].status, 0);
    assert_eq!(heir.bytes(Guest::places(0, answers[0].slot).1, 4096), [8; 4096]);
    assert!(daemons[1].state(&next).unwrap().stalled.is_none());
    // The source's guest is started again by mistake: it gets nothing done.
    link.start(&guest, &[2]);
    guest.send(0, WRITE, 0, Data::Out(&[9; 4096]));
    link.kick(0);
    until("the refusal", || daemons[0].state(&export).unwrap().stalled);
    drop(early);
    until("the disk to be free", || (!daemons[1].state(&next).unwrap().holds).then_some(()));
    let why = until("the fence", || {
        daemons[0].state(&export).unwrap().stalled.filter(|w| w.contains("no longer holds"))
    });
    assert!(why.contains("generation 2"), "{why}");
    assert_eq!(guest.answers_waiting(0), 0);
    assert_eq!(std::fs::read(&export.layers[0].path).unwrap()[..4096], [8; 4096]);
}

#[test]
fn an_older_generation_is_refused_by_the_volume_itself() {
    let daemons = [Daemon::start(), Daemon::start()];
    let mut export = make(&daemons[0], Raw);
    export.generation = Generation(5);
    daemons[0].open(&export);
    daemons[0].close(&export);
    let other = Export { socket: daemons[1].run_dir().join("o.s"), ..export.clone() };
    let older = Export { generation: Generation(4), ..other.clone() };
    let (code, message) = daemons[1].open_error(&older);
    assert_eq!(code, ErrorCode::Fenced);
    assert!(message.contains("generation 5"), "{message}");
    daemons[1].open(&other);
    daemons[1].close(&other);
    let newer = Export { generation: Generation(6), ..other };
    daemons[1].open(&newer);
    daemons[1].close(&newer);
    assert_eq!(daemons[0].open_error(&export).0, ErrorCode::Fenced);
    // Reading is nobody's harm.
    daemons[0].open(&Export { read_only: true, ..export });
}

#[test]
fn both_sides_may_be_killed_on_the_way() {
    let mut daemons = [Daemon::start(), Daemon::start()];
    let export = make(&daemons[0], Qcow2);
    daemons[0].open(&export);
    let mut load = Load::new(Guest::new(2), SIZE);
    let mut link = load.guest.connect(&export.socket);
    hold(&daemons[0], &export, Held::WhileRunning);
    let next = incoming(&daemons[1], &export);
    daemons[1].open(&next);
    // The source, while it still serves: its successor takes the disk up again.
    load.fill_all(&link);
    daemons[0].kill();
    drop(link);
    daemons[0].launch();
    link = load.guest.connect(&export.socket);
    load.work(&link, 100);
    // The target, before anything came: it restores what was to come.
    daemons[1].kill();
    daemons[1].launch();
    assert_eq!(daemons[1].state(&next).unwrap().export.held, Held::WhileRunning);
    load.fill_all(&link);
    let bases = link.stop(2);
    load.reap_all();
    link = load.guest.connect_at(&next.socket, &bases);
    load.work(&link, 100);
    // And once it serves.
    load.fill_all(&link);
    daemons[1].kill();
    drop(link);
    daemons[1].launch();
    link = load.guest.connect(&next.socket);
    load.work(&link, 100);
    until("the answers", || load.all_answered().then_some(()));
    load.verify(&link);
}

#[test]
fn waiting_for_a_release_ends() {
    let daemon = Daemon::start();
    let export = make(&daemon, Raw);
    daemon.open(&export);
    let wait = |ms| {
        let limit = Duration::from_millis(ms);
        daemon.ask(async |c| c.await_release(export.volume, export.generation, false, limit).await)
    };
    assert_eq!(refusal(wait(10)).0, ErrorCode::Invalid);
    let mut guest = Guest::new(1);
    let link = guest.connect(&export.socket);
    hold(&daemon, &export, Held::WhileRunning);
    assert_eq!(link.write(&mut guest, 0, &pattern(1, 512)), 0);
    assert_eq!(refusal(wait(10)).0, ErrorCode::Late);
    link.stop(1);
    wait(60_000).unwrap();
    // Whoever comes may have it.
    sh("qemu-io", &["-f", "raw", "-c", "write 0 512", path_str(&export.layers[0].path)]);
}

//! What becomes of a mirrored disk and of its guest when a side dies, the link is cut,
//! or the hand-over is called off.

mod support;

use basin_blockd::control::{ErrorCode, Export, Held, Mirror, MirrorPhase};
use basin_model::Bytes;
use basin_model::volume::VolumeFormat::{Qcow2, Raw};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::driver::*;
use support::fabric::host;
use support::load::Load;
use support::pair::{Pair, SIZE, make};
use support::{refusal, until};

#[test]
fn the_death_of_the_target_is_no_harm_to_the_guest() {
    let mut pair = Pair::new(Qcow2, Raw);
    let mut load = Load::new(Guest::new(2), SIZE);
    let link = load.guest.connect(&pair.from.socket);
    pair.source.mirror(&pair.mirror);
    load.work(&link, 100);
    pair.in_sync();
    load.fill_all(&link);
    pair.target.kill();
    load.work(&link, 300);
    until("the answers", || load.all_answered().then_some(()));
    assert!(!pair.failure().is_empty());
    let (code, message) = refusal(pair.await_release());
    assert_eq!(code, ErrorCode::MirrorFailed, "{message}");
    load.work(&link, 100);
    until("the answers", || load.all_answered().then_some(()));
    load.verify(&link);
    pair.target.launch();
    assert!(pair.target.granted(&pair.to).is_none(), "grants end with the process");
    pair.source.mirror(&pair.mirror);
    let reason = pair.failure();
    assert!(reason.contains("server"), "{reason}");
}

#[test]
fn the_death_of_the_source_leaves_its_disk_whole_and_the_target_of_no_use() {
    let mut pair = Pair::new(Raw, Raw);
    let mut load = Load::new(Guest::new(2), SIZE);
    let mut link = load.guest.connect(&pair.from.socket);
    pair.source.mirror(&pair.mirror);
    load.work(&link, 100);
    pair.in_sync();
    for _ in 0..3 {
        load.fill_all(&link);
        pair.source.kill();
        drop(link);
        pair.source.launch();
        link = load.guest.connect(&pair.from.socket);
        load.work(&link, 100);
    }
    assert!(pair.failure().contains("started again"), "{:?}", pair.state());
    let (code, message) = refusal(pair.await_release());
    assert_eq!(code, ErrorCode::MirrorFailed, "{message}");
    until("the answers", || load.all_answered().then_some(()));
    load.verify(&link);
    until("the end of the connections", || {
        (pair.target.granted(&pair.to).unwrap().connections == 0).then_some(())
    });
    assert!(!pair.target.granted(&pair.to).unwrap().complete);
    // A guest that is started there all the same does not see half a disk.
    pair.target.open(&pair.to);
    let mut heir = Guest::new(1);
    let early = heir.connect(&pair.to.socket);
    heir.send(0, READ, 0, Data::In(4096));
    early.kick(0);
    let why = until("the reason", || pair.target.state(&pair.to).unwrap().stalled);
    assert!(why.contains("has not finished"), "{why}");
    assert_eq!(heir.answers_waiting(0), 0);
}

#[test]
fn a_guest_that_goes_on_after_the_end_outdates_the_target() {
    let pair = Pair::new(Raw, Raw);
    let mut load = Load::new(Guest::new(2), SIZE);
    let link = load.guest.connect(&pair.from.socket);
    pair.source.mirror(&pair.mirror);
    pair.in_sync();
    pair.hold(Held::WhileRunning);
    let bases = link.stop(2);
    pair.await_release().unwrap();
    assert_eq!(pair.state().phase, MirrorPhase::Finished);
    // The guest is started again before anyone has called the hand-over off.
    link.start(&load.guest, &bases);
    load.fill_all(&link);
    let why = until("the reason", || pair.source.state(&pair.from).unwrap().stalled);
    assert!(why.contains("has gone to server"), "{why}");
    load.reap_all();
    assert!(!load.all_answered());
    assert_eq!(pair.source.open_error(&pair.from).0, ErrorCode::Fenced);
    pair.hold(Held::Always);
    load.work(&link, 100);
    until("the answers", || load.all_answered().then_some(()));
    assert!(pair.failure().contains("goes on here"));
    load.verify(&link);
    // From the start.
    pair.source.mirror(&pair.mirror);
    pair.in_sync();
    assert!(!pair.target.granted(&pair.to).unwrap().complete);
}

#[test]
fn a_mirror_goes_only_where_it_is_meant_to() {
    let pair = Pair::new(Raw, Raw);
    let check = |mirror: Mirror, what: &str| {
        pair.source.mirror(&mirror);
        let reason = pair.failure();
        assert!(reason.contains(what), "{reason:?} says nothing of {what:?}");
    };
    // Another server answers there; no such disk; nobody answers.
    check(Mirror { host: host(3), ..pair.mirror.clone() }, "TLS");
    check(Mirror { export: support::volume("other"), ..pair.mirror.clone() }, "no such export");
    let mut nobody = pair.mirror.address;
    nobody.set_port(1);
    check(Mirror { address: nobody, ..pair.mirror.clone() }, "refused");
    let mut small = make(&pair.target, "small", Raw, None);
    std::fs::File::options()
        .write(true)
        .open(&small.layers[0].path)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    small.generation = pair.to.generation;
    pair.target.grant(&small, host(1), false);
    check(Mirror { export: small.volume, ..pair.mirror.clone() }, "needs");
    pair.source.mirror(&pair.mirror);
    pair.in_sync();
}

/// Neither a blockd that knows nothing nor a guest that is started by mistake writes to
/// a disk that another server may use.
#[test]
fn a_disk_that_has_gone_is_not_used_by_a_blockd_that_starts_again() {
    let mut pair = Pair::new(Raw, Qcow2);
    let mut load = Load::new(Guest::new(2), SIZE);
    let link = load.guest.connect(&pair.from.socket);
    pair.source.mirror(&pair.mirror);
    load.work(&link, 100);
    pair.in_sync();
    until("the answers", || load.all_answered().then_some(()));
    pair.hold(Held::WhileRunning);
    let bases = link.stop(2);
    pair.await_release().unwrap();
    pair.source.kill();
    drop(link);
    pair.source.launch();
    let link = load.guest.connect_at(&pair.from.socket, &bases);
    load.fill_all(&link);
    let why = until("the reason", || pair.source.state(&pair.from).unwrap().stalled);
    assert!(why.contains("has gone to server"), "{why}");
    assert!(!load.all_answered());
    assert_eq!(pair.source.open_error(&pair.from).0, ErrorCode::Fenced);
    // Called off: the disk is as it was, and stays here from now on.
    pair.hold(Held::Always);
    until("the answers", || load.all_answered().then_some(()));
    load.work(&link, 50);
    pair.source.kill();
    drop(link);
    pair.source.launch();
    let link = load.guest.connect(&pair.from.socket);
    until("the answers", || load.all_answered().then_some(()));
    load.verify(&link);
    drop(link);
    // A new owner's disk has nothing to do with it.
    pair.source.close(&pair.from);
    let next = Export { generation: pair.from.generation.next(), ..pair.from.clone() };
    pair.source.open(&next);
    assert!(pair.source.mirror_state(&next).is_none());
}

/// Nobody says that the link is cut: the answers just stay away.
#[test]
fn a_target_that_falls_silent_does_not_hold_the_guest_up_for_ever() {
    let pair = Pair::new(Raw, Raw);
    let mut load = Load::new(Guest::new(2), SIZE);
    let link = load.guest.connect(&pair.from.socket);
    pair.source.mirror(&pair.mirror);
    load.work(&link, 100);
    pair.in_sync();
    let target = Pid::from_raw(i32::try_from(pair.target.pid()).unwrap());
    kill(target, Signal::SIGSTOP).unwrap();
    load.reap_all();
    load.fill_all(&link);
    let reason = pair.failure();
    assert!(reason.contains("no answer"), "{reason}");
    load.work(&link, 100);
    until("the answers", || load.all_answered().then_some(()));
    load.verify(&link);
    kill(target, Signal::SIGCONT).unwrap();
    until("the end of the connections", || {
        let granted = pair.target.granted(&pair.to).unwrap();
        (granted.connections == 0 && !granted.complete).then_some(())
    });
    // And from the start, once it is back.
    pair.source.mirror(&pair.mirror);
    pair.in_sync();
}

/// A guest that writes nothing has a mirror that fails all the same.
#[test]
fn a_target_that_dies_while_nothing_is_written_is_noticed() {
    let mut pair = Pair::new(Raw, Raw);
    pair.source.mirror(&pair.mirror);
    pair.in_sync();
    pair.target.kill();
    assert!(pair.failure().contains("connection"), "{:?}", pair.state());
    pair.hold(Held::WhileRunning);
    assert_eq!(refusal(pair.await_release()).0, ErrorCode::MirrorFailed);
}

#[test]
fn a_target_that_falls_silent_while_nothing_is_written_is_noticed() {
    let pair = Pair::new(Raw, Raw);
    pair.source.mirror(&pair.mirror);
    pair.in_sync();
    kill(Pid::from_raw(i32::try_from(pair.target.pid()).unwrap()), Signal::SIGSTOP).unwrap();
    assert!(pair.failure().contains("no answer"), "{:?}", pair.state());
}

#[test]
fn a_disk_that_grows_ends_its_mirror() {
    let pair = Pair::new(Raw, Raw);
    let mut guest = Guest::new(1);
    let link = guest.connect(&pair.from.socket);
    pair.source.mirror(&pair.mirror);
    pair.in_sync();
    let file = std::fs::File::options().write(true).open(&pair.from.layers[0].path).unwrap();
    file.set_len(2 * SIZE).unwrap();
    pair.source.resize(&pair.from, 2 * SIZE).unwrap();
    assert!(pair.failure().contains("grown"));
    assert_eq!(link.write(&mut guest, (2 * SIZE - 4096) / 512, &[5; 4096]), 0);
}

/// What came of an earlier mirror is nothing to a hand-over without one.
#[test]
fn a_mirror_that_was_given_up_is_no_obstacle_to_a_later_hand_over() {
    let pair = Pair::new(Raw, Raw);
    let mut guest = Guest::new(1);
    let link = guest.connect(&pair.from.socket);
    pair.source.mirror(&Mirror { limit: Some(Bytes(4096)), ..pair.mirror.clone() });
    pair.hold(Held::WhileRunning);
    let (code, message) = refusal(pair.await_release_of(false));
    assert_eq!(code, ErrorCode::Invalid, "{message}");
    let (volume, generation) = (pair.from.volume, pair.from.generation);
    pair.source.ask(async |c| c.stop_mirror(volume, generation).await).unwrap();
    assert_eq!(pair.state().phase, MirrorPhase::Stopped);
    assert_eq!(refusal(pair.await_release()).0, ErrorCode::MirrorFailed);
    assert_eq!(link.write(&mut guest, 0, &[1; 4096]), 0);
    link.stop(1);
    pair.await_release_of(false).unwrap();
}

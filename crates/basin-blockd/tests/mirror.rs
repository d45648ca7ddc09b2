//! A disk that is mirrored to another blockd while its guest writes.

mod support;

use basin_blockd::control::{ErrorCode, Export, Held, Mirror, MirrorPhase};
use basin_model::Bytes;
use basin_model::volume::VolumeFormat::{self, Qcow2, Raw};
use support::driver::*;
use support::load::Load;
use support::pair::{Pair, SIZE};
use support::{pattern, refusal, until};

fn check_switch(from: VolumeFormat, to: VolumeFormat) {
    let pair = Pair::new(from, to);
    // The rest is for what is done by hand.
    let mut load = Load::new(Guest::new(2), SIZE / 2);
    let link = load.guest.connect(&pair.from.socket);
    load.work(&link, 200);
    pair.source.mirror(&pair.mirror);
    pair.source.mirror(&pair.mirror);
    // Every kind of request while it copies and after.
    for round in 0..2 {
        load.work(&link, 300);
        until("the answers", || load.all_answered().then_some(()));
        let scratch = (24 << 20) / 512 + round * 2048;
        assert_eq!(link.write(&mut load.guest, scratch, &pattern(7, 65536)), 0);
        assert_eq!(link.clear(&mut load.guest, WRITE_ZEROES, scratch + 8, 16, 0), 0);
        assert_eq!(link.clear(&mut load.guest, WRITE_ZEROES, scratch + 32, 32, 1), 0);
        assert_eq!(link.clear(&mut load.guest, DISCARD, scratch + 64, 32, 0), 0);
        assert_eq!(link.flush(&mut load.guest), 0);
        pair.in_sync();
    }
    load.work(&link, 100);
    let state = pair.state();
    assert_eq!((state.done.get(), state.left.get()), (SIZE, 0));
    assert!(state.sent.get() > 1 << 20);

    // The target's guest is there already, and waits.
    pair.hold(Held::WhileRunning);
    pair.target.open(&pair.to);
    let (code, message) =
        pair.target.open_error(&Export { generation: pair.from.generation, ..pair.to.clone() });
    assert_eq!(code, ErrorCode::Fenced, "{message}");
    load.fill_all(&link);
    let bases = link.stop(2);
    load.reap_all();
    let there = load.guest.connect_at(&pair.to.socket, &bases);
    pair.await_release().unwrap();
    assert_eq!(pair.state().phase, MirrorPhase::Finished);
    load.work(&there, 50);
    until("the answers", || load.all_answered().then_some(()));
    load.verify(&there);
    assert_eq!(
        there.read(&mut load.guest, (20 << 20) / 512, 4096).unwrap(),
        [if from == Qcow2 { 0x33 } else { 0 }; 4096]
    );
    assert!(pair.target.granted(&pair.to).is_none(), "the export has taken it over");
    assert!(pair.target.state(&pair.to).unwrap().holds);
    pair.source.close(&pair.from);
}

#[test]
fn a_raw_disk_moves_into_a_qcow2_file() {
    check_switch(Raw, Qcow2);
}

#[test]
fn a_chain_moves_into_a_raw_file() {
    check_switch(Qcow2, Raw);
}

#[test]
fn both_sides_are_the_same_byte_for_byte() {
    for (from, to) in [(Raw, Raw), (Qcow2, Qcow2)] {
        let pair = Pair::new(from, to);
        let mut load = Load::new(Guest::new(2), SIZE);
        let link = load.guest.connect(&pair.from.socket);
        load.work(&link, 100);
        pair.source.mirror(&pair.mirror);
        load.work(&link, 600);
        pair.in_sync();
        load.work(&link, 600);
        until("the answers", || load.all_answered().then_some(()));
        pair.hold(Held::WhileRunning);
        link.stop(2);
        pair.await_release().unwrap();
        until("the target", || pair.target.granted(&pair.to).unwrap().complete.then_some(()));
        drop(link);
        pair.source.close(&pair.from);
        pair.target.revoke(&pair.to);
        pair.compare();
    }
}

/// Holes stay holes.
#[test]
fn what_is_empty_is_not_sent() {
    let pair = Pair::new(Raw, Raw);
    let mut guest = Guest::new(1);
    let link = guest.connect(&pair.from.socket);
    assert_eq!(link.write(&mut guest, 2048, &pattern(1, 65536)), 0);
    pair.source.mirror(&pair.mirror);
    pair.in_sync();
    assert!(pair.state().sent.get() < 2 << 20, "{:?}", pair.state());
    let blocks = std::os::unix::fs::MetadataExt::blocks(
        &std::fs::metadata(&pair.to.layers[0].path).unwrap(),
    );
    assert!(blocks * 512 < 2 << 20, "{blocks} blocks");
}

#[test]
fn the_copy_keeps_to_its_limit_and_can_be_stopped() {
    let pair = Pair::new(Raw, Raw);
    let mut guest = Guest::new(1);
    let link = guest.connect(&pair.from.socket);
    for n in 0..SIZE / DATA {
        assert_eq!(link.write(&mut guest, n * DATA / 512, &pattern(n, DATA as usize)), 0);
    }
    // So little that it cannot end while we look.
    let slow = Mirror { limit: Some(Bytes(4096)), ..pair.mirror.clone() };
    pair.source.mirror(&slow);
    until("the copy", || (pair.state().phase == MirrorPhase::Copying).then_some(()));
    assert_eq!(link.write(&mut guest, 0, &pattern(99, 4096)), 0, "the guest does not wait");
    let state = pair.state();
    assert!(state.left.get() > SIZE / 2, "{state:?}");
    let other = Mirror { limit: None, ..pair.mirror.clone() };
    let two = pair.source.ask(async |c| c.mirror(&other).await);
    assert_eq!(refusal(two).0, ErrorCode::Invalid);
    let stop = || {
        let (volume, generation) = (pair.from.volume, pair.from.generation);
        pair.source.ask(async |c| c.stop_mirror(volume, generation).await).unwrap();
    };
    stop();
    stop();
    assert_eq!(pair.state().phase, MirrorPhase::Stopped);
    assert_eq!(link.write(&mut guest, 8, &pattern(98, 4096)), 0);
    until("the connections' end", || {
        let granted = pair.target.granted(&pair.to).unwrap();
        (granted.connections == 0 && !granted.complete).then_some(())
    });
    // Another one takes its place.
    pair.source.mirror(&slow);
    until("the copy", || (pair.state().phase == MirrorPhase::Copying).then_some(()));
    let volume = pair.from.volume;
    pair.source.ask(async |c| c.mirror_limit(volume, None).await).unwrap();
    pair.in_sync();
}

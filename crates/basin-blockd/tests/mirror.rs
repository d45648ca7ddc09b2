//! A disk that is mirrored to another blockd while its guest writes, and what becomes
//! of both when one of them dies.

mod support;

use std::time::Duration;

use basin_blockd::control::{ErrorCode, Export, Held, Layer, Mirror, MirrorPhase, MirrorState};
use basin_model::Bytes;
use basin_model::volume::VolumeFormat::{self, Qcow2, Raw};
use support::driver::*;
use support::fabric::{Pki, host};
use support::load::Load;
use support::{Daemon, path_str, pattern, refusal, sh, until};

const SIZE: u64 = 32 << 20;

/// Two servers, a disk on the first and a place for it on the second.
struct Pair {
    source: Daemon,
    target: Daemon,
    from: Export,
    to: Export,
    mirror: Mirror,
}

fn make(at: &Daemon, name: &str, format: VolumeFormat, base: Option<&str>) -> Export {
    let path = at.path(name);
    let p = path_str(&path).to_owned();
    match (format, base) {
        (Raw, _) => {
            std::fs::File::create(&path).unwrap().set_len(SIZE).unwrap();
            at.export(name, vec![Layer { path, format }])
        }
        (Qcow2, None) => {
            sh("qemu-img", &["create", "-q", "-f", "qcow2", &p, "32M"]);
            at.export(name, vec![Layer { path, format }])
        }
        (Qcow2, Some(base)) => {
            sh("qemu-img", &["create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", &p, "32M"]);
            let layers = vec![Layer { path, format }, Layer { path: base.into(), format: Qcow2 }];
            at.export(name, layers)
        }
    }
}

impl Pair {
    fn new(from: VolumeFormat, to: VolumeFormat) -> Pair {
        let pki = Pki::new();
        let (source, target) = (Daemon::start(), Daemon::start());
        source.set_fabric(&pki.fabric(host(1)));
        target.set_fabric(&pki.fabric(host(2)));
        // The content of the whole chain goes over.
        let base = source.path("base.qcow2");
        let base = path_str(&base);
        sh("qemu-img", &["create", "-q", "-f", "qcow2", base, "32M"]);
        sh("qemu-io", &["-c", "write -P 0x33 20M 1M", base]);
        let from = make(&source, "from", from, (from == Qcow2).then_some(base));
        let mut to = make(&target, "to", to, None);
        to.generation = from.generation.next();
        to.held = Held::WhileRunning;
        source.open(&from);
        let address = target.grant(&to, host(1), false);
        let mirror = Mirror {
            volume: from.volume,
            generation: from.generation,
            address,
            export: to.volume,
            host: host(2),
            limit: None,
        };
        Pair { source, target, from, to, mirror }
    }

    fn state(&self) -> MirrorState {
        self.source.mirror_state(&self.from).unwrap()
    }

    fn in_sync(&self) {
        until("the mirror", || match self.state().phase {
            MirrorPhase::InSync => Some(()),
            MirrorPhase::Connecting | MirrorPhase::Copying => None,
            other => panic!("{other:?}"),
        });
    }

    fn hold(&self, held: Held) {
        let (volume, generation) = (self.from.volume, self.from.generation);
        self.source.ask(async |c| c.hold(volume, generation, held).await).unwrap();
    }

    fn await_release(&self) -> Result<(), basin_blockd::client::ClientError> {
        let (volume, generation) = (self.from.volume, self.from.generation);
        let limit = Duration::from_secs(60);
        self.source.ask(async |c| c.await_release(volume, generation, limit).await)
    }

    /// Nobody has them open any more.
    fn compare(&self) {
        let f = |e: &Export| if e.layers[0].format == Raw { "raw" } else { "qcow2" };
        let paths = [&self.from, &self.to].map(|e| path_str(&e.layers[0].path).to_owned());
        sh("qemu-img", &["compare", "-f", f(&self.from), "-F", f(&self.to), &paths[0], &paths[1]]);
        for (export, path) in [(&self.from, &paths[0]), (&self.to, &paths[1])] {
            if export.layers[0].format == Qcow2 {
                sh("qemu-img", &["check", "-q", path]);
            }
        }
    }
}

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
    let MirrorPhase::Failed { reason } = pair.state().phase else {
        panic!("{:?}", pair.state());
    };
    assert!(!reason.is_empty());
    let (code, message) = refusal(pair.await_release());
    assert_eq!(code, ErrorCode::MirrorFailed, "{message}");
    load.work(&link, 100);
    until("the answers", || load.all_answered().then_some(()));
    load.verify(&link);
    pair.target.launch();
    assert!(pair.target.granted(&pair.to).is_none(), "grants end with the process");
    pair.source.mirror(&pair.mirror);
    let reason = until("the refusal", || match pair.state().phase {
        MirrorPhase::Failed { reason } => Some(reason),
        _ => None,
    });
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
    assert!(pair.source.mirror_state(&pair.from).is_none(), "it is gone, and that is said");
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
    // The migration is called off.
    link.start(&load.guest, &bases);
    load.work(&link, 100);
    until("the answers", || load.all_answered().then_some(()));
    assert!(matches!(pair.state().phase, MirrorPhase::Failed { .. }), "{:?}", pair.state());
    load.verify(&link);
    pair.hold(Held::Always);
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
        let reason = until("the failure", || match pair.state().phase {
            MirrorPhase::Failed { reason } => Some(reason),
            _ => None,
        });
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

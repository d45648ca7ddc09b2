//! Fake machines that hand guests over: every fault at every point, by the hundred.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use basin_model::vm::{CpuModel, Machine as MachineType};
use basin_model::{Bytes, BytesPerSecond, Generation, Vcpus, VmId};
use basin_qemu::fake::{FakeEngine, FakeLink, FakeWorld, Fault, FaultPoint};
use basin_qemu::migrate::{
    AlwaysOpen, Channel, Drive, DriveError, Incoming, LastResort, MigrationKey, MigrationPhase,
    Moved, Outgoing, Pilot, Policy, Postcopy, Progress,
};
use basin_qemu::{BootSpec, Engine, EngineError, Machine, MachineSpec, MachineState};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

fn spec(n: u128) -> MachineSpec {
    MachineSpec {
        vm: VmId::from_uuid(uuid::Uuid::from_u128(n)),
        generation: Generation(1),
        name: format!("vm-{n}"),
        vcpus: Vcpus(1),
        memory: Bytes::mib(256),
        cpu_model: CpuModel::Auto,
        machine: MachineType::Q35,
        machine_version: None,
        boot: BootSpec::Bios,
        disks: vec![],
        cdroms: vec![],
        nics: vec![],
    }
}

struct Pair {
    link: FakeLink,
    from: FakeWorld,
    to: FakeWorld,
    spec: MachineSpec,
    source: Arc<dyn Machine>,
    target: Arc<dyn Machine>,
    channel: Channel,
}

/// A source that was started towards its target.
async fn begin(n: u128, channel: Channel) -> Pair {
    let link = FakeLink::default();
    let (from, to) = (FakeWorld::on_link(&link, None), FakeWorld::on_link(&link, None));
    let spec = spec(n);
    let source = from.engine().launch(&spec, vec![]).await.unwrap();
    let key = MigrationKey::fresh();
    let incoming = Incoming { hardware: source.hardware(), key: key.clone(), channel };
    let target = to.engine().launch_incoming(&spec, vec![], &incoming).await.unwrap();
    let to_address = target.listen(IpAddr::V4(Ipv4Addr::LOCALHOST)).await.unwrap();
    let limits = Pilot::new(Policy::default()).limits();
    let outgoing =
        Outgoing { to: to_address, key, channel, limits, hold: true, may_throttle: true };
    source.migrate(&outgoing).await.unwrap();
    Pair { link, from, to, spec, source, target, channel }
}

impl Pair {
    async fn drive(&self, policy: Policy, cancel: &CancellationToken) -> Result<Moved, DriveError> {
        let progress = watch::Sender::new(Progress::default());
        let drive = Drive {
            machine: &*self.source,
            channel: self.channel,
            policy,
            gate: &AlwaysOpen,
            progress: &progress,
            cancel,
        };
        let end = tokio::time::timeout(Duration::from_secs(3600), drive.run()).await;
        end.expect("a migration does not end")
    }

    fn run(&self) -> (bool, bool) {
        let runs = |world: &FakeWorld| {
            world.guest(self.spec.vm).is_some_and(|g| g.state() == MachineState::Running)
        };
        (runs(&self.from), runs(&self.to))
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_moves_and_its_source_is_left() {
    let pair = begin(1, Channel::default()).await;
    pair.drive(Policy::default(), &CancellationToken::new()).await.unwrap();
    assert_eq!(pair.run(), (false, true));
    assert_eq!(pair.source.state().await.unwrap(), MachineState::Migrated);
    assert!(pair.source.resume().await.is_err());
    assert_eq!(pair.target.hardware(), pair.source.hardware());
    // Adopted, it is the same.
    let adopted = pair.from.engine().adopt().await.unwrap();
    let status = adopted[0].machine.migration().await.unwrap();
    assert_eq!(status.phase, MigrationPhase::Completed);
    pair.source.kill().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn every_fault_at_every_point_leaves_the_guest_running_at_most_once() {
    use FaultPoint::{BeforeSwitch, Copying, Running, Sent, Start, Switching};
    let points = [Start, Copying, BeforeSwitch, Switching, Sent, Running];
    let faults = [Fault::SourceDies, Fault::TargetDies, Fault::LinkCut, Fault::LinkBroken];
    for (n, point) in points.into_iter().enumerate() {
        for fault in faults {
            let pair = begin(n as u128 + 1, Channel::default()).await;
            pair.link.inject(point, fault);
            let end = pair.drive(Policy::default(), &CancellationToken::new()).await;
            let (here, there) = pair.run();
            let context = format!("{fault:?} at {point:?}: {end:?}, {here} {there}");
            assert!(!(here && there), "{context}");
            match end {
                Ok(_) => assert!(!here, "{context}"),
                // What these promise.
                Err(
                    DriveError::Cancelled | DriveError::GaveUp { .. } | DriveError::Failed { .. },
                ) => assert!(here && !there, "{context}"),
                Err(DriveError::SourceGone) => assert!(!here, "{context}"),
                Err(DriveError::Unclear { .. }) => assert!(!here, "{context}"),
                Err(DriveError::NotBegun) => panic!("{context}"),
            }
            // A target that is known to be dead gives the guest back.
            let source_lives = pair.source.state().await.unwrap() != MachineState::Gone;
            if source_lives && !here && !there {
                pair.target.kill().await.unwrap();
                pair.source.reclaim().await.unwrap();
                assert_eq!(pair.run(), (true, false), "{context}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_never_converges_ends_as_the_policy_says() {
    let begin = async |channel| {
        let pair = begin(7, channel).await;
        pair.link.set_bandwidth(BytesPerSecond::mib(100));
        pair.from.guest(pair.spec.vm).unwrap().set_dirty_rate(BytesPerSecond::mib(400));
        pair
    };
    let stays = Policy { throttle: false, last: LastResort::GiveUp, ..Policy::default() };
    let pair = begin(Channel::default()).await;
    let limited = Policy { time_limit: Some(Duration::from_secs(30)), ..stays };
    let end = pair.drive(limited.clone(), &CancellationToken::new()).await;
    assert!(matches!(end, Err(DriveError::GaveUp { .. })), "{end:?}");
    assert_eq!(pair.run(), (true, false));
    let pair = begin(Channel { postcopy: true, ..Channel::default() }).await;
    let goes = Policy { postcopy: Postcopy::Fallback, ..limited };
    let moved = pair.drive(goes, &CancellationToken::new()).await.unwrap();
    assert!(moved.postcopy);
    assert_eq!(pair.run(), (false, true));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_guest_stays() {
    for wait in [0, 10, 100, 200, 400] {
        let pair = begin(9, Channel::default()).await;
        let cancel = CancellationToken::new();
        let later = cancel.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            later.cancel();
        });
        let end = pair.drive(Policy::default(), &cancel).await;
        let expect = match end {
            Ok(_) => (false, true),
            Err(DriveError::Cancelled) => (true, false),
            Err(other) => panic!("{other}"),
        };
        assert_eq!(pair.run(), expect, "{wait}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_wrong_key_or_another_machine_is_refused() {
    let world = FakeWorld::new();
    let engine: FakeEngine = world.engine();
    let source = engine.launch(&spec(1), vec![]).await.unwrap();
    let mut hardware = source.hardware();
    hardware.ram = Bytes::mib(1);
    let incoming = Incoming { hardware, key: MigrationKey::fresh(), channel: Channel::default() };
    let refused = engine.launch_incoming(&spec(2), vec![], &incoming).await.err().unwrap();
    assert!(matches!(refused, EngineError::Start(_)), "{refused}");
    let pair = begin(3, Channel::default()).await;
    pair.source.cancel_migration().await.unwrap();
    pair.source.cancel_migration().await.unwrap();
    assert_eq!(pair.run(), (true, false));
    assert_eq!(pair.target.state().await.unwrap(), MachineState::Gone);
}

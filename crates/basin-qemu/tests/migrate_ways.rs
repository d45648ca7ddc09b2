//! Real QEMUs that hand a guest over in another way than as one encrypted stream of pre-copy.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU8;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use basin_model::vm::Machine as MachineType;
use basin_qemu::migrate::{
    AlwaysOpen, Channel, Drive, Limits, MigrationPhase, Policy, Postcopy, Progress,
};
use basin_qemu::{EngineError, MachineState};
use support::pair::{HERE, Pair, drive, limits, phase, still_right};
use support::{PATIENCE, become_state};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn memory_goes_over_several_connections_compressed_or_not() {
    let mut pair = Pair::dirty(MachineType::Q35).await;
    for compress in [false, true] {
        let streams = NonZeroU8::new(3);
        pair.channel = Channel { streams, compress, postcopy: false };
        let (there, _) = pair.go(Policy::default()).await;
        still_right(&*there).await;
        pair.machine.kill().await.unwrap();
        let Pair { source, target, .. } = pair;
        pair = Pair { source: target, target: source, machine: there, ..pair };
    }
    pair.machine.kill().await.unwrap();
}

/// A link between the servers that is slow, and can be broken.
struct Wire {
    address: SocketAddr,
    ends: Arc<Mutex<Vec<TcpStream>>>,
}

impl Wire {
    fn to(target: SocketAddr) -> Wire {
        let listener = TcpListener::bind((HERE, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let ends: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let kept = ends.clone();
        std::thread::spawn(move || {
            let Ok((near, _)) = listener.accept() else { return };
            let Ok(far) = TcpStream::connect(target) else { return };
            for (from, to) in [(&near, &far), (&far, &near)] {
                let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(from.try_clone().unwrap());
                std::thread::spawn(move || {
                    let mut buffer = [0; 32 << 10];
                    // A megabyte and a half in a second.
                    while let Ok(n @ 1..) = from.read(&mut buffer)
                        && to.write_all(&buffer[..n]).is_ok()
                    {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    let _ = to.shutdown(Shutdown::Both);
                });
            }
        });
        Wire { address, ends }
    }

    fn cut(&self) {
        for end in &*self.ends.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

/// The one test at a time that may come by post-copy; sets the server back afterwards.
struct MayPostcopy {
    before: String,
    _one: tokio::sync::MutexGuard<'static, ()>,
}

const SYSCTL: &str = "/proc/sys/vm/unprivileged_userfaultfd";

impl MayPostcopy {
    async fn new() -> MayPostcopy {
        static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let one = ONE.lock().await;
        MayPostcopy { before: std::fs::read_to_string(SYSCTL).unwrap(), _one: one }
    }
}

impl Drop for MayPostcopy {
    fn drop(&mut self) {
        let _ = std::fs::write(SYSCTL, &self.before);
    }
}

/// It cannot be there before it goes over.
fn never_by_precopy(mib: u64) -> Limits {
    Limits { downtime: Duration::from_millis(1), ..limits(Some(mib)) }
}

#[tokio::test]
async fn post_copy_moves_a_guest_before_its_memory() {
    let _may = MayPostcopy::new().await;
    let mut pair = Pair::dirty(MachineType::Q35).await;
    pair.channel.postcopy = true;
    let (there, address) = pair.expect().await;
    let mut outgoing = pair.outgoing(address);
    outgoing.limits = never_by_precopy(64);
    pair.machine.migrate(&outgoing).await.unwrap();
    let policy = Policy {
        postcopy: Postcopy::AtOnce,
        bandwidth: outgoing.limits.bandwidth,
        ..Policy::default()
    };
    let moved = drive(&*pair.machine, pair.channel, policy).await.unwrap();
    assert!(moved.postcopy, "{moved:?}");
    still_right(&*there).await;
    // It ran there: nobody gets it back by mistake.
    assert_eq!(pair.machine.state().await.unwrap(), MachineState::Migrated);
    let refused = pair.machine.reclaim().await;
    assert!(matches!(refused, Err(EngineError::Refused { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_post_copy_whose_link_breaks_is_mended() {
    let _may = MayPostcopy::new().await;
    let mut pair = Pair::dirty(MachineType::Q35).await;
    pair.channel.postcopy = true;
    let (there, address) = pair.expect().await;
    let wire = Wire::to(address);
    let mut outgoing = pair.outgoing(wire.address);
    outgoing.limits = never_by_precopy(4);
    pair.machine.migrate(&outgoing).await.unwrap();
    phase(&*pair.machine, |phase| *phase == MigrationPhase::Active).await;
    pair.machine.start_postcopy().await.unwrap();
    let (source, channel) = (pair.machine.clone(), pair.channel);
    let driving = tokio::spawn(async move {
        let (progress, cancel) =
            (watch::Sender::new(Progress::default()), CancellationToken::new());
        let bandwidth = outgoing.limits.bandwidth;
        let policy = Policy { bandwidth, ..Policy::default() };
        let gate = &AlwaysOpen;
        let drive = Drive {
            machine: &*source,
            channel,
            policy,
            gate,
            progress: &progress,
            cancel: &cancel,
        };
        drive.run().await
    });
    phase(&*pair.machine, |phase| *phase == MigrationPhase::Postcopy).await;
    // Cut before, it would be a failure: the target never ran.
    become_state(&*there, MachineState::Running).await;
    wire.cut();
    for side in [&pair.machine, &there] {
        phase(&**side, |phase| *phase == MigrationPhase::PostcopyPaused).await;
    }
    // What the source has, nobody else has: it is not to be left, nor run, nor cancelled.
    assert_eq!(pair.machine.state().await.unwrap(), MachineState::Switching);
    for refused in [
        pair.machine.resume().await,
        pair.machine.reclaim().await,
        pair.machine.cancel_migration().await,
    ] {
        assert!(matches!(refused, Err(EngineError::Refused { .. })), "{refused:?}");
    }
    let again = there.listen_to_recover(HERE).await.unwrap();
    assert_ne!(again, address);
    pair.machine.recover_postcopy(again).await.unwrap();
    pair.machine.set_limits(&limits(None)).await.unwrap();
    let moved = tokio::time::timeout(PATIENCE, driving).await.expect("it does not end");
    assert!(moved.unwrap().unwrap().postcopy);
    become_state(&*pair.machine, MachineState::Migrated).await;
    still_right(&*there).await;
}

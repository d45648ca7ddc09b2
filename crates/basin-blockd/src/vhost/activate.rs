//! Takes a disk's file for a device that has started before the file was free: the
//! target of a migration, whose guest already runs and whose requests wait in the
//! rings. Until the source has let go, it tries as often as costs little.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::device::Handler;
use crate::control::ErrorCode;
use crate::disk::Disk;

const STACK: usize = 256 << 10;
/// A hand-over is a matter of milliseconds, and the guest waits.
const EAGER: Duration = Duration::from_millis(3000);
const EAGER_PAUSE: Duration = Duration::from_micros(300);
/// Then something is wrong, and is said.
const PAUSE: Duration = Duration::from_millis(50);
const SAY_AFTER: Duration = Duration::from_millis(500);
const LONG_PAUSE: Duration = Duration::from_millis(1000);

/// Tries until it is held, or the device has stopped.
pub fn activate(handler: Weak<Mutex<Handler>>, disk: Arc<Disk>) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("activate".into()).stack_size(STACK).spawn(move || {
        let begin = Instant::now();
        while !attempt(&handler, &disk, begin) {
            std::thread::sleep(pause(begin.elapsed()));
        }
        // It may have stopped while the file was taken.
        disk.settle();
    })
}

/// True if there is nothing more to do.
fn attempt(handler: &Weak<Mutex<Handler>>, disk: &Disk, begin: Instant) -> bool {
    let taken = if disk.running() { Some(disk.take()) } else { None };
    let why = match taken {
        Some(Err(why)) => Some(why),
        _ => None,
    };
    if let Some(why) = &why
        && (why.code != ErrorCode::Locked || begin.elapsed() >= SAY_AFTER)
    {
        disk.set_stalled(Some(&format!("the disk is not held: {why}")));
    }
    let Some(handler) = handler.upgrade() else { return true };
    let mut handler = handler.lock().unwrap_or_else(PoisonError::into_inner);
    if disk.running() && why.is_some() {
        return false;
    }
    if disk.running() && disk.block().is_none() {
        // It stopped and started meanwhile.
        return false;
    }
    disk.set_stalled(None);
    handler.activated();
    if disk.running() {
        tracing::info!(volume = %disk.volume, took = ?begin.elapsed(), "holds the disk");
    }
    true
}

fn pause(waited: Duration) -> Duration {
    match waited {
        t if t < EAGER => EAGER_PAUSE,
        t if t < 10 * EAGER => PAUSE,
        _ => LONG_PAUSE,
    }
}

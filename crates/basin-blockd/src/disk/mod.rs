//! A disk as its queues, its front end and the control socket share it: what it is,
//! and whether its file is held at the moment.

mod mirror;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use basin_model::{Bytes, VolumeId};

use crate::control::{ErrorCode, Export, Held, Layer, MirrorPhase};
use crate::generation::Claim;
use crate::io::{self, Block, DiskError};
use crate::nbd::grants::Grants;
use crate::stats::Counters;
use mirror::Mirrors;

pub struct Disk {
    pub volume: VolumeId,
    pub read_only: bool,
    pub queues: u16,
    /// Padded with zeros.
    pub serial: [u8; 20],
    pub counters: Counters,
    claim: Option<Claim>,
    layers: Vec<Layer>,
    grants: Arc<Grants>,
    mirrors: Mirrors,
    /// What the configuration space tells, be the file held or not.
    size: AtomicU64,
    /// Held while the file is taken or let go.
    turn: Mutex<()>,
    state: Mutex<State>,
    changed: Condvar,
    is_stalled: AtomicBool,
    stalled: Mutex<Option<String>>,
}

struct State {
    held: Held,
    /// The front end has started its device.
    running: bool,
    block: Option<Arc<dyn Block>>,
    /// It is being let go.
    closing: bool,
    /// Why the last attempt to let go was not clean.
    unclean: Option<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Disk {
    /// Takes the file, unless it is held only while the device runs.
    pub fn open(export: &Export, grants: &Arc<Grants>) -> Result<Disk, DiskError> {
        let mut serial = [0; 20];
        let n = export.serial.len().min(serial.len());
        serial[..n].copy_from_slice(&export.serial.as_bytes()[..n]);
        let claim = Claim { volume: export.volume, generation: export.generation };
        let disk = Disk {
            volume: export.volume,
            read_only: export.read_only,
            queues: export.queues,
            serial,
            counters: Counters::default(),
            claim: (!export.read_only).then_some(claim),
            layers: export.layers.clone(),
            grants: Arc::clone(grants),
            mirrors: Mirrors::default(),
            size: AtomicU64::new(0),
            turn: Mutex::default(),
            state: Mutex::new(State {
                held: export.held,
                running: false,
                block: None,
                closing: false,
                unclean: None,
            }),
            changed: Condvar::new(),
            is_stalled: AtomicBool::new(false),
            stalled: Mutex::default(),
        };
        match export.held {
            Held::Always => drop(disk.take()?),
            Held::WhileRunning => {
                disk.set_size(io::size(&export.layers)?);
                if let (Some(claim), Some(top)) = (disk.claim, export.layers.first()) {
                    claim.look(&top.path)?;
                }
            }
        }
        Ok(disk)
    }

    /// The open file, if it is held.
    pub fn block(&self) -> Option<Arc<dyn Block>> {
        lock(&self.state).block.clone()
    }

    /// Holds the file from now on; that it is held already is fine. One attempt.
    pub fn take(&self) -> Result<Arc<dyn Block>, DiskError> {
        let _turn = lock(&self.turn);
        if let Some(block) = self.block() {
            return Ok(block);
        }
        self.check_here()?;
        // What was brought for it is its own; whoever takes it for good, takes it as it is.
        let anyway = self.held() == Held::Always;
        let brought = self.grants.take_over(self.claim, self.volume, &self.layers, anyway)?;
        let block = match brought {
            Some(block) => block,
            None => io::open(&self.layers, self.claim)?,
        };
        self.set_size(block.size());
        lock(&self.state).block = Some(Arc::clone(&block));
        self.changed.notify_all();
        Ok(block)
    }

    /// Lets the file go if nothing needs it. Its queues have been stopped.
    pub fn settle(&self) {
        let idle = |state: &State| {
            !state.running && state.held == Held::WhileRunning && state.block.is_some()
        };
        // Without waiting for whoever takes it just now: he comes here afterwards.
        if !idle(&lock(&self.state)) {
            return;
        }
        let _turn = lock(&self.turn);
        if !idle(&lock(&self.state)) {
            return;
        }
        if let Some(mirror) = self.mirror()
            && !mirror.finish()
        {
            // It still copies; when it is done, it comes back here.
            return;
        }
        let mut state = lock(&self.state);
        if !idle(&state) {
            drop(state);
            if self.running() {
                // It was started again just before the end of the mirror.
                self.set_gone(None);
            }
            return;
        }
        let Some(block) = state.block.take() else { return };
        state.closing = true;
        drop(state);
        let begin = Instant::now();
        let closed = block.close();
        drop(block);
        match &closed {
            Ok(()) => tracing::info!(volume = %self.volume, took = ?begin.elapsed(), "let go"),
            Err(why) => tracing::error!(volume = %self.volume, %why, "let go, not all is written"),
        }
        let mut state = lock(&self.state);
        (state.closing, state.unclean) = (false, closed.err().map(|e| e.to_string()));
        drop(state);
        self.changed.notify_all();
    }

    /// Lets the file go for good.
    pub fn close(&self) -> std::io::Result<()> {
        if let Some(mirror) = self.mirror() {
            mirror.stop();
        }
        let _turn = lock(&self.turn);
        let block = lock(&self.state).block.take();
        block.map_or(Ok(()), |block| block.close())
    }

    /// Did the front end start its device?
    pub fn running(&self) -> bool {
        lock(&self.state).running
    }

    pub fn set_running(&self, running: bool) {
        let mut state = lock(&self.state);
        if state.running != running {
            state.running = running;
            if running {
                state.unclean = None;
            }
            self.changed.notify_all();
        }
    }

    pub fn held(&self) -> Held {
        lock(&self.state).held
    }

    pub fn set_held(&self, held: Held) {
        lock(&self.state).held = held;
    }

    /// Waits until the device has stopped and the file is let go; if it is `mirrored`,
    /// by a mirror that is finished.
    pub fn await_release(&self, mirrored: bool, limit: Duration) -> Result<(), DiskError> {
        let late = |what: &str| {
            let message = format!("volume {}: {what} after {limit:?}", self.volume);
            Err(DiskError::new(ErrorCode::Late, message))
        };
        let end = Instant::now() + limit.min(Duration::from_secs(3600));
        let mut state = lock(&self.state);
        loop {
            self.check_mirror(mirrored)?;
            if state.held == Held::Always {
                let message = format!("volume {} is not held while running only", self.volume);
                return Err(DiskError::new(ErrorCode::Invalid, message));
            }
            if !state.running && state.block.is_none() && !state.closing {
                return match &state.unclean {
                    None => Ok(()),
                    Some(why) => {
                        let message = format!("cannot write the disk's data out: {why}");
                        Err(DiskError::new(ErrorCode::Io, message))
                    }
                };
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return late(if state.running {
                    "its device still runs"
                } else {
                    "it is still held"
                });
            }
            // A mirror's end is no change of the state.
            let waited = self.changed.wait_timeout(state, left.min(Duration::from_millis(50)));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Refused if what is to be released cannot be what is expected.
    fn check_mirror(&self, mirrored: bool) -> Result<(), DiskError> {
        let useless = |why: &str| {
            let message = format!("the mirror of volume {} is of no use: {why}", self.volume);
            Err(DiskError::new(ErrorCode::MirrorFailed, message))
        };
        match self.mirror_phase() {
            Some(phase) if !mirrored && !phase.has_ended() => {
                let message = format!("volume {} is mirrored: stop that first", self.volume);
                Err(DiskError::new(ErrorCode::Invalid, message))
            }
            _ if !mirrored => self.check_here(),
            Some(MirrorPhase::Failed { reason }) => useless(&reason),
            Some(MirrorPhase::Stopped) => useless("it was given up"),
            None => useless("there is none"),
            Some(_) => Ok(()),
        }
    }

    pub fn size(&self) -> Bytes {
        Bytes(self.size.load(Ordering::Relaxed))
    }

    fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Relaxed);
    }

    /// Takes up a new size; true if the guest is to look.
    pub fn grow(&self, size: Bytes) -> Result<bool, DiskError> {
        let now = match self.block() {
            Some(block) => block.grow(size)?,
            None => io::size(&self.layers)?,
        };
        if now < size.get() {
            let message = format!("the file has {} and not the {size} it should have", Bytes(now));
            return Err(DiskError::new(ErrorCode::Invalid, message));
        }
        let grown = self.size.swap(now, Ordering::Relaxed) != now;
        if let Some(mirror) = self.mirror().filter(|_| grown) {
            mirror.outgrown();
        }
        Ok(grown)
    }

    pub fn stalled(&self) -> Option<String> {
        lock(&self.stalled).clone()
    }

    /// A cheap look for the data path.
    pub fn is_stalled(&self) -> bool {
        self.is_stalled.load(Ordering::Relaxed)
    }

    /// Requests wait, or no longer.
    pub fn set_stalled(&self, why: Option<&str>) {
        let mut stalled = lock(&self.stalled);
        if stalled.as_deref() != why {
            match why {
                Some(why) => tracing::warn!(volume = %self.volume, why, "requests wait"),
                None => tracing::info!(volume = %self.volume, "requests go on"),
            }
            *stalled = why.map(str::to_owned);
            self.is_stalled.store(why.is_some(), Ordering::Relaxed);
        }
    }

    /// An I/O error went to the guest. Logged at 1, 2, 4, 8, ... so that a dead
    /// device does not fill the log.
    pub fn failed(&self, what: &str, why: &dyn std::fmt::Display) {
        let count = self.counters.failed();
        if count.is_power_of_two() {
            tracing::warn!(volume = %self.volume, what, %why, count, "request failed");
        }
    }
}

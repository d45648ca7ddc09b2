//! A disk's mirror: the last one, what became of one that a blockd before this one
//! had begun, and whether the disk has gone to another server by it.

use std::sync::{Arc, Mutex};

use basin_model::{Bytes, HostId};

use super::{Disk, lock};
use crate::control::{ErrorCode, Mirror, MirrorPhase, MirrorState};
use crate::io::{Block, DiskError};
use crate::mirror::Mirroring;

#[derive(Default)]
pub struct Mirrors {
    last: Mutex<Option<Arc<Mirroring>>>,
    /// It was begun by a blockd that has ended since; there is no later one.
    lost: Mutex<Option<MirrorState>>,
    /// While the queues are to use it.
    tap: Mutex<Option<Arc<Mirroring>>>,
    /// Who may have the disk, and so may use it.
    gone_to: Mutex<Option<HostId>>,
}

impl Disk {
    /// The last mirror of this process.
    pub fn mirror(&self) -> Option<Arc<Mirroring>> {
        lock(&self.mirrors.last).clone()
    }

    /// How the last mirror goes or went.
    pub fn mirror_state(&self) -> Option<MirrorState> {
        match self.mirror() {
            Some(mirror) => Some(mirror.state()),
            None => lock(&self.mirrors.lost).clone(),
        }
    }

    pub(super) fn mirror_phase(&self) -> Option<MirrorPhase> {
        match self.mirror() {
            Some(mirror) => Some(mirror.phase()),
            None => lock(&self.mirrors.lost).as_ref().map(|lost| lost.phase.clone()),
        }
    }

    /// A blockd before this one had begun it.
    pub fn set_lost_mirror(&self, mirror: Mirror) {
        let reason = "blockd ended and was started again while the disk was mirrored".into();
        *lock(&self.mirrors.lost) = Some(MirrorState {
            mirror,
            phase: MirrorPhase::Failed { reason, full: false },
            done: Bytes::ZERO,
            left: self.size(),
            sent: Bytes::ZERO,
            rate: Bytes::ZERO,
        });
    }

    /// Where the queues' writes go, if not to the disk alone.
    pub fn tap(&self) -> Option<Arc<Mirroring>> {
        lock(&self.mirrors.tap).clone()
    }

    pub fn set_tap(&self, mirror: Option<Arc<Mirroring>>) {
        *lock(&self.mirrors.tap) = mirror;
    }

    /// Begins a mirror by `begin`, which gets the disk's open file.
    pub fn set_mirror(
        &self,
        mirror: &Mirror,
        begin: impl FnOnce(Arc<dyn Block>) -> Result<Arc<Mirroring>, DiskError>,
    ) -> Result<(), DiskError> {
        let _turn = lock(&self.turn);
        let invalid = |message: String| Err(DiskError::new(ErrorCode::Invalid, message));
        if let Some(older) = self.mirror() {
            let state = older.state();
            if !state.phase.has_ended() {
                return match state.mirror == *mirror {
                    true => Ok(()),
                    false => invalid(format!(
                        "volume {} is already mirrored to server {}: stop that first",
                        self.volume, state.mirror.host
                    )),
                };
            }
        }
        match self.block() {
            Some(block) if !self.read_only => {
                *lock(&self.mirrors.last) = Some(begin(block)?);
                Ok(())
            }
            _ => invalid(format!("volume {} is not open for writing here", self.volume)),
        }
    }

    /// From now on another server may use the disk, so this one does not take its own
    /// file any more; `None`: the hand-over was called off.
    pub fn set_gone(&self, to: Option<HostId>) {
        *lock(&self.mirrors.gone_to) = to;
        if to.is_none()
            && let Some(mirror) = self.mirror()
        {
            mirror.outdated();
        }
    }

    /// Refused if the disk has gone to another server.
    pub fn check_here(&self) -> Result<(), DiskError> {
        match *lock(&self.mirrors.gone_to) {
            None => Ok(()),
            Some(host) => {
                let message = format!(
                    "volume {} has gone to server {host}: only when that was called off may it \
                     be used here",
                    self.volume
                );
                Err(DiskError::new(ErrorCode::Fenced, message))
            }
        }
    }
}

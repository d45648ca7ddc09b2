//! A fake of the disks of a server, for tests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use basin_blockd::control::{
    ErrorCode, Export, ExportState, Fabric, Grant, GrantState, Held, Mirror, MirrorPhase,
    MirrorState, Stats,
};
use basin_model::{Bytes, Generation, VolumeId};

use super::{DiskError, Disks};

/// Disks that nobody serves. Clones are the same; keep one to outlive a daemon.
#[derive(Clone, Default)]
pub struct FakeDisks(Arc<Mutex<FakeState>>);

#[derive(Default)]
struct FakeState {
    exports: BTreeMap<VolumeId, Export>,
    grants: BTreeMap<VolumeId, Grant>,
    mirrors: BTreeMap<VolumeId, (Mirror, MirrorPhase)>,
    fabric: Option<Fabric>,
    fail_opens: Option<(u32, DiskError)>,
    postcopy: bool,
}

impl FakeDisks {
    pub fn new() -> FakeDisks {
        FakeDisks::default()
    }

    /// What is served now.
    pub fn exports(&self) -> Vec<Export> {
        self.state().exports.values().cloned().collect()
    }

    /// The next `times` opens fail.
    pub fn fail_next_opens(&self, times: u32, error: DiskError) {
        self.state().fail_opens = Some((times, error));
    }

    /// A mirror is from now on in this phase; they are in sync at once otherwise.
    pub fn set_mirror(&self, volume: VolumeId, phase: MirrorPhase) {
        if let Some((_, now)) = self.state().mirrors.get_mut(&volume) {
            *now = phase;
        }
    }

    /// They can serve a guest whose memory still arrives; not otherwise.
    pub fn allow_postcopy(&self) {
        self.state().postcopy = true;
    }

    fn state(&self) -> MutexGuard<'_, FakeState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Disks for FakeDisks {
    async fn open(&self, export: &Export) -> Result<(), DiskError> {
        let mut state = self.state();
        if let Some((times, error)) = &mut state.fail_opens
            && *times > 0
        {
            *times -= 1;
            return Err(error.clone());
        }
        state.exports.insert(export.volume, export.clone());
        Ok(())
    }

    async fn close(&self, volume: VolumeId, _: Generation) -> Result<(), DiskError> {
        let mut state = self.state();
        state.exports.remove(&volume);
        state.mirrors.remove(&volume);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<ExportState>, DiskError> {
        let state = self.state();
        let mirror = |(mirror, phase): &(Mirror, MirrorPhase)| MirrorState {
            mirror: mirror.clone(),
            phase: phase.clone(),
            done: Bytes::ZERO,
            left: Bytes::ZERO,
            sent: Bytes::ZERO,
            rate: Bytes::ZERO,
        };
        let export = |export: &Export| ExportState {
            export: export.clone(),
            connected: true,
            size: Bytes::ZERO,
            stats: Stats::default(),
            stalled: None,
            running: export.held == Held::Always,
            holds: export.held == Held::Always,
            mirror: state.mirrors.get(&export.volume).map(mirror),
        };
        Ok(state.exports.values().map(export).collect())
    }

    async fn resize(&self, _: VolumeId, _: Bytes) -> Result<(), DiskError> {
        Ok(())
    }

    async fn hold(&self, volume: VolumeId, _: Generation, held: Held) -> Result<(), DiskError> {
        match self.state().exports.get_mut(&volume) {
            Some(export) => {
                export.held = held;
                Ok(())
            }
            None => Err(not_found(volume)),
        }
    }

    async fn await_release(
        &self,
        volume: VolumeId,
        _: Generation,
        mirrored: bool,
        _: Duration,
    ) -> Result<(), DiskError> {
        let mut state = self.state();
        if !state.exports.contains_key(&volume) {
            return Err(not_found(volume));
        }
        match state.mirrors.get_mut(&volume) {
            _ if !mirrored => Ok(()),
            Some((_, phase)) if matches!(phase, MirrorPhase::InSync | MirrorPhase::Finished) => {
                *phase = MirrorPhase::Finished;
                Ok(())
            }
            _ => Err(DiskError {
                code: Some(ErrorCode::MirrorFailed),
                message: "the mirror is not in sync".into(),
            }),
        }
    }

    async fn fabric(&self, fabric: Option<&Fabric>) -> Result<(), DiskError> {
        self.state().fabric = fabric.cloned();
        Ok(())
    }

    async fn grant(&self, grant: &Grant) -> Result<(), DiskError> {
        self.state().grants.insert(grant.volume, grant.clone());
        Ok(())
    }

    async fn revoke(&self, volume: VolumeId, _: Generation) -> Result<(), DiskError> {
        self.state().grants.remove(&volume);
        Ok(())
    }

    async fn grants(&self) -> Result<Vec<GrantState>, DiskError> {
        let state = self.state();
        let grant = |grant: &Grant| GrantState {
            grant: grant.clone(),
            address: state.fabric.as_ref().map(|f| f.listen),
            size: Bytes::ZERO,
            connections: 0,
            read_bytes: Bytes::ZERO,
            write_bytes: Bytes::ZERO,
            complete: false,
        };
        Ok(state.grants.values().map(grant).collect())
    }

    async fn mirror(&self, mirror: &Mirror) -> Result<(), DiskError> {
        let mut state = self.state();
        if !state.exports.contains_key(&mirror.volume) {
            return Err(not_found(mirror.volume));
        }
        state.mirrors.insert(mirror.volume, (mirror.clone(), MirrorPhase::InSync));
        Ok(())
    }

    async fn mirror_limit(&self, _: VolumeId, _: Option<Bytes>) -> Result<(), DiskError> {
        Ok(())
    }

    async fn stop_mirror(&self, volume: VolumeId, _: Generation) -> Result<(), DiskError> {
        if let Some((_, phase)) = self.state().mirrors.get_mut(&volume)
            && !phase.has_ended()
        {
            *phase = MirrorPhase::Stopped;
        }
        Ok(())
    }

    fn keep(&self, export: &Export) {
        self.state().exports.insert(export.volume, export.clone());
    }

    fn up(&self) -> bool {
        true
    }

    fn postcopy(&self) -> bool {
        self.state().postcopy
    }

    fn pid(&self) -> Option<u32> {
        None
    }
}

fn not_found(volume: VolumeId) -> DiskError {
    DiskError { code: Some(ErrorCode::NotFound), message: format!("volume {volume} is not served") }
}

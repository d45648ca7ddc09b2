//! The seam between the node and what serves disks: blockd, or a fake for tests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use basin_blockd::control::{ErrorCode, Export, ExportState, Stats};
use basin_model::{Bytes, Generation, VolumeId};

/// Why a disk is not served as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DiskError {
    /// What blockd answered; none when there was no answer.
    pub code: Option<ErrorCode>,
    pub message: String,
}

/// Serves disks.
#[async_trait]
pub trait Disks: Send + Sync + 'static {
    /// Idempotent.
    async fn open(&self, export: &Export) -> Result<(), DiskError>;

    /// Idempotent.
    async fn close(&self, volume: VolumeId, generation: Generation) -> Result<(), DiskError>;

    async fn list(&self) -> Result<Vec<ExportState>, DiskError>;

    async fn resize(&self, volume: VolumeId, size: Bytes) -> Result<(), DiskError>;

    /// Keep serving this, which a machine that outlived the daemon uses.
    fn keep(&self, export: &Export);

    /// Whether it answers now.
    fn up(&self) -> bool;

    /// The process, once it runs.
    fn pid(&self) -> Option<u32>;
}

/// Disks that nobody serves. Clones are the same; keep one to outlive a daemon.
#[derive(Clone, Default)]
pub struct FakeDisks(Arc<Mutex<FakeState>>);

#[derive(Default)]
struct FakeState {
    exports: BTreeMap<VolumeId, Export>,
    fail_opens: Option<(u32, DiskError)>,
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
        self.state().exports.remove(&volume);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<ExportState>, DiskError> {
        let export = |export: &Export| ExportState {
            export: export.clone(),
            connected: true,
            size: Bytes::ZERO,
            stats: Stats::default(),
            stalled: None,
        };
        Ok(self.state().exports.values().map(export).collect())
    }

    async fn resize(&self, _: VolumeId, _: Bytes) -> Result<(), DiskError> {
        Ok(())
    }

    fn keep(&self, export: &Export) {
        self.state().exports.insert(export.volume, export.clone());
    }

    fn up(&self) -> bool {
        true
    }

    fn pid(&self) -> Option<u32> {
        None
    }
}

//! The seam between the node and what serves disks: blockd, or a fake for tests.

mod fake;

use std::time::Duration;

use async_trait::async_trait;
use basin_blockd::control::{
    ErrorCode, Export, ExportState, Fabric, Grant, GrantState, Held, Mirror,
};
use basin_model::{Bytes, Generation, VolumeId};

pub use fake::FakeDisks;

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

    /// The file is held otherwise from now on: before a hand-over, and after one that
    /// was called off. Idempotent.
    async fn hold(
        &self,
        volume: VolumeId,
        generation: Generation,
        held: Held,
    ) -> Result<(), DiskError>;

    /// Waits until the device has stopped, the file is let go, and a mirror, if it is
    /// `mirrored`, is finished.
    async fn await_release(
        &self,
        volume: VolumeId,
        generation: Generation,
        mirrored: bool,
        limit: Duration,
    ) -> Result<(), DiskError>;

    /// How other servers are spoken to; remembered for a blockd that starts later.
    async fn fabric(&self, fabric: Option<&Fabric>) -> Result<(), DiskError>;

    /// Idempotent. Lost when blockd ends.
    async fn grant(&self, grant: &Grant) -> Result<(), DiskError>;

    /// Idempotent.
    async fn revoke(&self, volume: VolumeId, generation: Generation) -> Result<(), DiskError>;

    async fn grants(&self) -> Result<Vec<GrantState>, DiskError>;

    /// Begins a mirror; how it goes is in [`Disks::list`]. When blockd ends, it fails.
    async fn mirror(&self, mirror: &Mirror) -> Result<(), DiskError>;

    async fn mirror_limit(&self, volume: VolumeId, limit: Option<Bytes>) -> Result<(), DiskError>;

    /// Gives a mirror up. Idempotent.
    async fn stop_mirror(&self, volume: VolumeId, generation: Generation) -> Result<(), DiskError>;

    /// Keep serving this, which a machine that outlived the daemon uses.
    fn keep(&self, export: &Export);

    /// Whether it answers now.
    fn up(&self) -> bool;

    /// Whether it can serve a guest whose memory still arrives.
    fn postcopy(&self) -> bool;

    /// The process, once it runs.
    fn pid(&self) -> Option<u32>;
}

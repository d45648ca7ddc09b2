//! The moment before the switch: the guest is still, its disks are let go.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use basin_blockd::control::{Export, Held};
use basin_model::{Generation, VolumeId};
use basin_qemu::migrate::Gate;
use futures::future::{join_all, try_join_all};

use crate::disks::{DiskError, Disks};

/// What was written last has to be durable, here or on the other server.
const RELEASED_WITHIN: Duration = Duration::from_secs(10);
/// A file is taken back as soon as nobody else has it.
const TAKEN_BACK_WITHIN: Duration = Duration::from_secs(10);
const TRY_AGAIN: Duration = Duration::from_millis(100);

/// A disk that takes part in a migration, at the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaving {
    pub volume: VolumeId,
    pub generation: Generation,
    /// Its content moves along.
    pub mirrored: bool,
}

/// The disks that a migration lets go of; those that are only read stay open on both sides.
pub fn leaving(exports: &[Export], moves: impl Fn(VolumeId) -> bool) -> Vec<Leaving> {
    let written = exports.iter().filter(|export| !export.read_only);
    let leaving = |e: &Export| Leaving {
        volume: e.volume,
        generation: e.generation,
        mirrored: moves(e.volume),
    };
    written.map(leaving).collect()
}

pub struct DisksGate {
    pub disks: Arc<dyn Disks>,
    pub leaving: Vec<Leaving>,
}

#[async_trait]
impl Gate for DisksGate {
    async fn before_switch(&self) -> Result<(), String> {
        let release = |disk: Leaving| async move {
            let Leaving { volume, generation, mirrored } = disk;
            self.disks.hold(volume, generation, Held::WhileRunning).await?;
            self.disks.await_release(volume, generation, mirrored, RELEASED_WITHIN).await
        };
        let released = try_join_all(self.leaving.iter().copied().map(release)).await;
        released.map(drop).map_err(|e: DiskError| format!("a disk is not let go: {e}"))
    }
}

/// The guest stays: its disks are this server's again, and mirrors end. The error names
/// one that another owner has.
pub async fn take_back(disks: &dyn Disks, leaving: &[Leaving]) -> Result<(), DiskError> {
    let take = |disk: &Leaving| {
        let Leaving { volume, generation, mirrored } = *disk;
        async move {
            if mirrored && let Err(error) = disks.stop_mirror(volume, generation).await {
                tracing::warn!(%volume, %error, "a mirror goes on");
            }
            let begun = tokio::time::Instant::now();
            loop {
                match disks.hold(volume, generation, Held::Always).await {
                    Ok(()) => return Ok(()),
                    Err(error) if begun.elapsed() > TAKEN_BACK_WITHIN => return Err(error),
                    Err(error) if error.code == Some(basin_blockd::control::ErrorCode::Fenced) => {
                        return Err(error);
                    }
                    Err(_) => tokio::time::sleep(TRY_AGAIN).await,
                }
            }
        }
    };
    join_all(leaving.iter().map(take)).await.into_iter().collect()
}

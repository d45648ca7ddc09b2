//! A waiting machine whose disks do not come back.
//!
//! QEMU connects again to a blockd that died, but (7.2) only for a device that it had
//! started. A machine that waits for a guest has started none: it would run the guest with
//! disks that never answer. Before that it is ended, and the guest stays where it is; a
//! guest that came in the same moment is ended as well, and started again as after any
//! crash.

use std::sync::Arc;
use std::time::Duration;

use basin_model::VmId;
use basin_qemu::Machine;
use basin_qemu::migrate::MigrationPhase;
use tokio::time::{Instant, sleep};

use super::Migrations;
use crate::disks::Disks;
use crate::vms::parts::Parts;

/// The death of blockd is noticed long before this.
const NOTICED_WITHIN: Duration = Duration::from_secs(5);
/// QEMU tries each second.
const BACK_WITHIN: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The blockd that a machine was made with.
pub struct MadeWith {
    disks: Arc<dyn Disks>,
    pid: Option<u32>,
}

impl MadeWith {
    pub fn now(parts: &Parts) -> MadeWith {
        MadeWith { pid: parts.disks.pid(), disks: Arc::clone(&parts.disks) }
    }

    /// Another one has taken its place.
    pub fn replaced(&self) -> bool {
        matches!((self.pid, self.disks.pid()), (Some(then), Some(now)) if then != now)
    }
}

/// Ends a machine whose guest has just come, if its disks turn out to be lost.
pub async fn watch(migrations: &Migrations, vm: VmId, made: MadeWith, machine: Arc<dyn Machine>) {
    let begun = Instant::now();
    while !made.replaced() {
        if begun.elapsed() > NOTICED_WITHIN {
            return;
        }
        sleep(LOOK_EVERY).await;
    }
    // Until all memory is there no blockd serves it that was not told of the post-copy.
    while let Ok(status) = machine.migration().await
        && matches!(status.phase, MigrationPhase::Postcopy | MigrationPhase::PostcopyPaused)
    {
        sleep(LOOK_EVERY).await;
    }
    let begun = Instant::now();
    while !migrations.0.parts.all_served(vm).await {
        if begun.elapsed() > BACK_WITHIN {
            tracing::error!(%vm, "blockd died as the guest came, and QEMU does not connect to it \
                any more: the machine is ended");
            if let Err(error) = machine.kill().await {
                tracing::error!(%vm, %error, "a machine without disks cannot be ended");
            }
            return;
        }
        sleep(LOOK_EVERY).await;
    }
}

//! What a leader does: drives every workflow, from the moment it leads until it does not.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::leader::Leadership;
use crate::workflow::Workflows;

/// After the store did not answer.
const PAUSE: Duration = Duration::from_secs(1);

/// Takes over what others left when this server begins to lead, and lets go of
/// everything when it ceases to. Runs until stopped.
pub async fn serve<S: Send + Sync + 'static>(
    leadership: Leadership,
    workflows: Workflows<S>,
    stop: CancellationToken,
) {
    let mut changes = leadership.changes();
    loop {
        changes.borrow_and_update();
        let mut again = None;
        if leadership.leads() {
            match workflows.resume_all().await {
                Ok(0) => {}
                Ok(resumed) => tracing::info!(resumed, "tasks of an earlier leader go on"),
                Err(error) => {
                    tracing::warn!(%error, "cannot take over tasks yet");
                    again = Some(PAUSE);
                }
            }
        } else {
            workflows.stop().await;
        }
        let timer = async {
            match again {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() {
                // Alone, or at the end: nothing changes any more.
                return stop.cancelled().await;
            },
            () = timer => {}
        }
    }
}

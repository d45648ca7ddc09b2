//! What goes on beside the steps of a workflow: progress is saved, a wish to
//! cancel is heard, and an engine that took over is noticed.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use basin_model::TaskId;
use basin_model::keys;
use basin_model::task::Task;
use basin_store::Store;
use basin_store::records::{self, RecordEvent, TxnBuilder, watch_records};
use futures::StreamExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::progress::Progress;
use super::record::Record;

/// The shortest time between two saves of progress.
const SAVE: Duration = Duration::from_secs(1);

/// Returns when another engine has the workflow, else never.
pub(super) async fn listen(
    store: Arc<dyn Store>,
    id: TaskId,
    epoch: u64,
    progress: watch::Receiver<Progress>,
    cancel: CancellationToken,
) {
    tokio::select! {
        never = hear_cancel(Arc::clone(&store), id, cancel) => match never {},
        never = save_progress(Arc::clone(&store), id, epoch, progress) => match never {},
        () = taken_over(store, id, epoch) => (),
    }
}

async fn hear_cancel(store: Arc<dyn Store>, id: TaskId, cancel: CancellationToken) -> Infallible {
    let mut events = watch_records::<Task>(store, keys::task(id));
    loop {
        let wanted = match events.next().await {
            Some(Ok(RecordEvent::Resync { records, .. })) => {
                records.iter().any(|r| r.value.cancel_requested)
            }
            Some(Ok(RecordEvent::Put(record))) => record.value.cancel_requested,
            _ => false,
        };
        if wanted {
            cancel.cancel();
        }
    }
}

async fn taken_over(store: Arc<dyn Store>, id: TaskId, epoch: u64) {
    let mut events = watch_records::<Record>(store, keys::workflow(id));
    loop {
        // That it is gone is the driver's own doing, or it will find out.
        let now = match events.next().await {
            Some(Ok(RecordEvent::Resync { mut records, .. })) => records.pop(),
            Some(Ok(RecordEvent::Put(record))) => Some(record),
            _ => None,
        };
        if now.is_some_and(|record| record.value.epoch != epoch) {
            return;
        }
    }
}

async fn save_progress(
    store: Arc<dyn Store>,
    id: TaskId,
    epoch: u64,
    mut progress: watch::Receiver<Progress>,
) -> Infallible {
    loop {
        if progress.changed().await.is_err() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(SAVE).await;
            let latest = progress.borrow_and_update().clone();
            match save(&*store, id, epoch, latest).await {
                Ok(()) => break,
                // The store is away, or somebody was quicker: again, later.
                Err(e) => tracing::debug!(task = %id, "progress is not saved: {e}"),
            }
        }
    }
}

async fn save(
    store: &dyn Store,
    id: TaskId,
    epoch: u64,
    Progress { message, percent }: Progress,
) -> Result<(), records::CommitError> {
    let task = records::get::<Task>(store, &keys::task(id)).await?;
    let record = records::get::<Record>(store, &keys::workflow(id)).await?;
    let (Some(task), Some(record)) = (task, record) else { return Ok(()) };
    let same = task.value.message == message && task.value.percent == percent;
    if same || record.value.epoch != epoch {
        return Ok(());
    }
    let value = Task { message, percent, ..task.value.clone() };
    let txn = TxnBuilder::new().replace(&task, &value).require_unchanged(&record);
    txn.commit(store).await.map(|_| ())
}

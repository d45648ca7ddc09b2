//! Says that this server's daemon runs and reaches the store, for as long as it does.

use std::sync::Arc;
use std::time::Duration;

use basin_model::HostId;
use basin_model::cluster::Alive;
use basin_model::keys;
use basin_store::Store;
use basin_store::records::{CommitError, TxnBuilder};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::lease::Held;

/// A server that is silent for this long is shown as unreachable.
pub const TTL: Duration = Duration::from_secs(6);

const PAUSE: Duration = Duration::from_millis(500);

/// Keeps the record until stopped.
pub async fn announce(store: Arc<dyn Store>, host: HostId, stop: CancellationToken) {
    let since = Timestamp::now();
    while !stop.is_cancelled() {
        let outcome = async {
            let mut held = Held::grant(&*store, TTL).await?;
            let record = Alive { host, since };
            let put = TxnBuilder::new().put_leased(keys::alive(host), &record, held.id);
            match put.commit(&*store).await {
                Ok(_) | Err(CommitError::Refused(_)) => held.keep(&stop).await,
                Err(CommitError::Store(error)) => return Err(error),
            }
            if stop.is_cancelled() {
                held.give_up().await;
            }
            Ok::<(), basin_store::StoreError>(())
        };
        if let Err(error) = outcome.await {
            tracing::debug!(%error, "cannot say that this server is alive");
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

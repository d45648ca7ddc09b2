//! A lease that is kept: renewed in time, and given up when that is not certain.

use std::time::Duration;

use basin_store::{LeaseId, Store, StoreError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A lease that we hold. What stands under it is ours until [`Held::keep`] returns.
pub struct Held<'a> {
    store: &'a dyn Store,
    pub id: LeaseId,
    ttl: Duration,
    /// From here the store may have ended it: counted from before the request.
    renewed: Instant,
}

impl<'a> Held<'a> {
    pub async fn grant(store: &'a dyn Store, ttl: Duration) -> Result<Held<'a>, StoreError> {
        let renewed = Instant::now();
        let id = store.grant(ttl).await?;
        Ok(Held { store, id, ttl, renewed })
    }

    /// Renews it for as long as that can be relied upon. Returns at the latest when
    /// two thirds of its life are over without an answer from the store, which
    /// leaves a third to stop what only the holder may do; or when told to stop.
    pub async fn keep(&mut self, stop: &CancellationToken) {
        loop {
            let doubtful = self.renewed + self.ttl * 2 / 3;
            let attempt = async {
                tokio::time::sleep_until(self.renewed + self.ttl / 4).await;
                loop {
                    let began = Instant::now();
                    match self.store.renew(self.id).await {
                        Ok(()) => return Some(began),
                        Err(StoreError::LeaseGone(_)) => return None,
                        Err(error) => {
                            tracing::debug!(%error, "a lease is not renewed yet");
                            tokio::time::sleep(self.ttl / 20).await;
                        }
                    }
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                renewed = tokio::time::timeout_at(doubtful, attempt) => match renewed {
                    Ok(Some(began)) => self.renewed = began,
                    Ok(None) | Err(_) => return,
                },
            }
        }
    }

    /// Ends it now, so that nobody waits for it. Best effort: it ends by itself.
    pub async fn give_up(self) {
        let within = self.ttl / 4;
        match tokio::time::timeout(within, self.store.revoke(self.id)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a lease ends by itself"),
            Err(_) => tracing::debug!("a lease ends by itself: the store does not answer"),
        }
    }
}

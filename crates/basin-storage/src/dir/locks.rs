//! One operation at a time on one id.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::datastore::StorageError;

#[derive(Default)]
pub struct Locks {
    held: Mutex<HashMap<Uuid, Arc<tokio::sync::Mutex<()>>>>,
}

impl Locks {
    /// Waits until nobody else works on `id`.
    pub async fn lock(
        &self,
        id: Uuid,
        cancel: &CancellationToken,
    ) -> Result<OwnedMutexGuard<()>, StorageError> {
        let lock = {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever holds or awaits a lock has it; the others are forgotten.
            held.retain(|_, lock| Arc::strong_count(lock) > 1);
            held.entry(id).or_default().clone()
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(StorageError::Cancelled),
            guard = lock.lock_owned() => Ok(guard),
        }
    }
}

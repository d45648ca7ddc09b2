//! One at a time for each thing. A caller whose connection broke may ask again, or
//! undo, while the first call is still winding down here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use uuid::Uuid;

#[derive(Default)]
pub struct Turns(Mutex<HashMap<Uuid, Arc<AsyncMutex<()>>>>);

impl Turns {
    /// Waits until nobody else works on the thing; held until dropped.
    pub async fn wait(&self, thing: Option<Uuid>) -> Option<OwnedMutexGuard<()>> {
        let turn = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|_, turn| Arc::strong_count(turn) > 1);
            all.entry(thing?).or_default().clone()
        };
        Some(turn.lock_owned().await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test(flavor = "multi_thread")]
    async fn one_at_a_time_and_nothing_is_kept() {
        let (turns, inside) = (Arc::new(Turns::default()), Arc::new(AtomicU32::new(0)));
        let thing = Some(Uuid::new_v4());
        let mut all = Vec::new();
        for _ in 0..16 {
            let (turns, inside) = (turns.clone(), inside.clone());
            all.push(tokio::spawn(async move {
                let _turn = turns.wait(thing).await;
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                tokio::task::yield_now().await;
                inside.fetch_sub(1, Ordering::SeqCst);
            }));
        }
        for one in all {
            one.await.unwrap();
        }
        assert!(turns.wait(None).await.is_none());
        drop(turns.wait(Some(Uuid::new_v4())).await);
        assert!(turns.0.lock().unwrap().len() <= 1);
    }
}

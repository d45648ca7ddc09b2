//! The one thread that changes the store.
//!
//! It takes what has gathered since the last commit as one batch, one SQLite
//! transaction, one fsync: commits that come together share it. Answers are
//! given when the batch is durable, refusals included, since what refused them
//! may be part of the batch. A batch that fails as a whole is tried one by one,
//! so that one large value on a nearly full disk takes no other change with it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::file::Db;
use crate::shared::Shared;
use crate::state::Draft;
use crate::store::StoreError;

/// A change that somebody waits for.
pub(super) trait Request: Send {
    /// Makes the change in the draft. Called again if the draft came to nothing.
    fn draft(&mut self, draft: &mut Draft<'_>);
    /// Tells whoever waits: what the last draft said, or why it is not durable.
    fn settle(self: Box<Self>, durable: Result<(), StoreError>);
}

pub(super) struct Asked<T, F> {
    pub change: F,
    pub outcome: Option<Result<T, StoreError>>,
    pub answer: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> Request for Asked<T, F>
where
    T: Send,
    F: FnMut(&mut Draft<'_>) -> Result<T, StoreError> + Send,
{
    fn draft(&mut self, draft: &mut Draft<'_>) {
        self.outcome = Some((self.change)(draft));
    }

    fn settle(self: Box<Self>, durable: Result<(), StoreError>) {
        let never = || Err(StoreError::Unavailable("the change was not tried".to_owned()));
        let Asked { outcome, answer, .. } = *self;
        // An error here means that nobody waits any more: the caller was cancelled.
        let _ = answer.send(durable.and_then(|()| outcome.unwrap_or_else(never)));
    }
}

const BATCH: usize = 512;

/// How long to wait before leases that could not be ended are tried again.
const RETRY: Duration = Duration::from_secs(1);

pub(super) struct Writer {
    pub db: Db,
    pub shared: Arc<Shared>,
    /// Where the state's times count from.
    pub born: Instant,
}

/// Watches end with the writer, also if it panics.
impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Writer {
    /// Until the store is dropped.
    pub fn run(mut self, requests: &Receiver<Box<dyn Request>>) {
        let mut pause = Duration::ZERO;
        loop {
            let deadline = self.shared.read().next_deadline();
            let first = match deadline {
                None => requests.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(deadline) => {
                    let wait = deadline.saturating_sub(self.born.elapsed()).max(pause);
                    requests.recv_timeout(wait)
                }
            };
            match first {
                Ok(first) => self.serve(first, requests),
                Err(RecvTimeoutError::Timeout) => (),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            // After the requests: a renewal that came in time is heard, however
            // long the disk took.
            pause = match self.end_leases() {
                Ok(()) => Duration::ZERO,
                Err(e) => {
                    tracing::warn!("cannot end leases whose time is up: {e}");
                    RETRY
                }
            };
        }
    }

    fn serve(&mut self, first: Box<dyn Request>, requests: &Receiver<Box<dyn Request>>) {
        let mut batch = vec![first];
        batch.extend(requests.try_iter().take(BATCH - 1));
        let together = batch.len() > 1
            && self.change(|draft| batch.iter_mut().for_each(|r| r.draft(draft))).is_ok();
        for mut request in batch {
            let result = if together { Ok(()) } else { self.change(|draft| request.draft(draft)) };
            request.settle(result);
        }
    }

    fn end_leases(&mut self) -> Result<(), StoreError> {
        let now = self.born.elapsed();
        if self.shared.read().next_deadline().is_none_or(|deadline| deadline > now) {
            return Ok(());
        }
        self.change(|draft| draft.expire(now))
    }

    /// Durable and published, or neither.
    fn change(&mut self, make: impl FnOnce(&mut Draft<'_>)) -> Result<(), StoreError> {
        let (delta, compacted) = {
            let state = self.shared.read();
            let mut draft = Draft::new(&state);
            make(&mut draft);
            (draft.finish(), state.compacted)
        };
        if delta.is_durable() {
            self.db.write(&delta, compacted)?;
        }
        self.shared.publish(delta);
        Ok(())
    }
}

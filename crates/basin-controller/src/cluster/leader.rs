//! Who leads: the server whose controller decides (DESIGN D3), by a lease in the store.
//!
//! ```text
//!            the key is free, and we create it
//!  Nobody ───────────────────────────────────────> Me
//!    ^  ^ \                                         │ not renewed for 2/3 of its life:
//!    │  │  ───────────> Other(leader)               │ we stop; the store ends the lease
//!    │  └────────────────── │ its key vanishes      │ later, so nobody leads meanwhile
//!    └───────────────────────────────────────────────
//! ```
//!
//! Whatever only a leader may write carries [`Leadership::guard`] as a condition:
//! an old leader that was stopped in the middle of a thought cannot write any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use basin_model::HostId;
use basin_model::cluster::Leader;
use basin_model::keys;
use basin_store::records::{CommitError, RecordEvent, TxnBuilder, get, watch_records};
use basin_store::{Compare, Revision, Store, StoreError};
use futures::StreamExt;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::lease::Held;

/// A dead leader is replaced after this long at most, and a little.
pub const TTL: Duration = Duration::from_secs(4);

/// After a failure of the store, or of a candidacy.
const PAUSE: Duration = Duration::from_millis(300);

/// Who leads, as this server knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lead {
    /// There is one server only.
    Alone,
    /// This server; its record was made at this revision.
    Me(Revision),
    Other(HostId),
    /// Nobody that this server knows of.
    Nobody,
}

/// Follows who leads. Clones are the same.
#[derive(Debug, Clone)]
pub struct Leadership(watch::Receiver<Lead>);

impl Leadership {
    /// That of a single server.
    pub fn alone() -> Leadership {
        // Nobody changes it: a receiver goes on showing the last value.
        Leadership(watch::channel(Lead::Alone).1)
    }

    pub fn now(&self) -> Lead {
        self.0.borrow().clone()
    }

    pub fn leads(&self) -> bool {
        matches!(*self.0.borrow(), Lead::Alone | Lead::Me(_))
    }

    /// The condition that this server still leads; `Err`: it does not now.
    pub fn guard(&self) -> Result<TxnBuilder, Lead> {
        match self.now() {
            Lead::Alone => Ok(TxnBuilder::new()),
            Lead::Me(since) => {
                Ok(TxnBuilder::new().require(Compare::Unchanged(keys::leader(), since)))
            }
            lead => Err(lead),
        }
    }

    pub fn changes(&self) -> watch::Receiver<Lead> {
        self.0.clone()
    }

    /// Waits until somebody leads, but no longer than `limit`.
    pub async fn settled(&self, limit: Duration) -> Lead {
        let mut changes = self.0.clone();
        let somebody = changes.wait_for(|lead| *lead != Lead::Nobody);
        match tokio::time::timeout(limit, somebody).await {
            Ok(Ok(lead)) => lead.clone(),
            _ => self.now(),
        }
    }
}

/// Stands for election until stopped; gives the office up then.
pub fn campaign(
    store: Arc<dyn Store>,
    me: HostId,
    stop: CancellationToken,
) -> (Leadership, impl Future<Output = ()> + Send) {
    campaign_with(store, me, TTL, stop)
}

pub(super) fn campaign_with(
    store: Arc<dyn Store>,
    me: HostId,
    ttl: Duration,
    stop: CancellationToken,
) -> (Leadership, impl Future<Output = ()> + Send) {
    let (sender, receiver) = watch::channel(Lead::Nobody);
    let run = async move {
        let elected = AtomicBool::new(false);
        while !stop.is_cancelled() {
            let round = async {
                match stand(&*store, me, ttl).await {
                    Ok(Some((held, since))) => {
                        elected.store(true, Ordering::Relaxed);
                        lead(held, since, &sender, &stop).await;
                        elected.store(false, Ordering::Relaxed);
                    }
                    Ok(None) => follow(store.clone(), &sender).await,
                    Err(error) => {
                        sender.send_replace(Lead::Nobody);
                        tracing::debug!(%error, "cannot stand for election");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            };
            tokio::pin!(round);
            tokio::select! {
                () = &mut round => {}
                // `lead` ends by itself when told to stop, and gives the lease up: else
                // nobody could be elected until that runs out.
                () = stop.cancelled() => {
                    if elected.load(Ordering::Relaxed) {
                        round.await;
                    }
                }
            }
        }
        sender.send_replace(Lead::Nobody);
    };
    (Leadership(receiver), run)
}

/// Tries to become the leader; `None`: there is one.
async fn stand(
    store: &dyn Store,
    me: HostId,
    ttl: Duration,
) -> Result<Option<(Held<'_>, Revision)>, StoreError> {
    if get::<Leader>(store, &keys::leader()).await?.is_some() {
        return Ok(None);
    }
    let held = Held::grant(store, ttl).await?;
    let record = Leader { host: me, elected_at: Timestamp::now() };
    let txn = TxnBuilder::new().require_absent(keys::leader());
    match txn.put_leased(keys::leader(), &record, held.id).commit(store).await {
        Ok(revision) => Ok(Some((held, revision))),
        Err(CommitError::Refused(_)) => {
            held.give_up().await;
            Ok(None)
        }
        Err(CommitError::Store(error)) => {
            // It may have been done all the same; then it must not stand for long.
            held.give_up().await;
            Err(error)
        }
    }
}

async fn lead(
    mut held: Held<'_>,
    since: Revision,
    sender: &watch::Sender<Lead>,
    stop: &CancellationToken,
) {
    tracing::info!("this server leads");
    sender.send_replace(Lead::Me(since));
    held.keep(stop).await;
    sender.send_replace(Lead::Nobody);
    tracing::info!("this server no longer leads");
    held.give_up().await;
}

/// Returns when the office is free.
async fn follow(store: Arc<dyn Store>, sender: &watch::Sender<Lead>) {
    let say = |lead: Lead| {
        sender.send_if_modified(|now| {
            let new = *now != lead;
            *now = lead.clone();
            new
        });
    };
    let mut events = watch_records::<Leader>(store, keys::leader());
    while let Some(event) = events.next().await {
        match event {
            Ok(RecordEvent::Resync { mut records, .. }) => match records.pop() {
                Some(leader) => say(Lead::Other(leader.value.host)),
                None => break,
            },
            Ok(RecordEvent::Put(leader)) => say(Lead::Other(leader.value.host)),
            Ok(RecordEvent::Deleted { .. }) => break,
            // Who cannot see the store does not know who leads.
            Err(_) => say(Lead::Nobody),
        }
    }
    say(Lead::Nobody);
}

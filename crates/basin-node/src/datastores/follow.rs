//! Opens and closes datastores as their records come and go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use basin_model::datastore::{Datastore as Record, DatastoreState};
use basin_model::keys::Kind;
use basin_storage::StorageError;
use basin_store::records::{RecordEvent, watch_records};
use futures::StreamExt;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::Datastores;
use crate::problem::Explain;

/// A file system may have been mounted meanwhile, or a server may answer again.
const AGAIN: Duration = Duration::from_secs(5);

impl Datastores {
    /// Runs until stopped. `first` is told when those of the first reading are
    /// open, so that VMs find them.
    pub async fn follow(self: Arc<Self>, first: oneshot::Sender<()>, stop: CancellationToken) {
        let mut first = Some(first);
        let mut known: BTreeMap<String, Record> = BTreeMap::new();
        let mut events = watch_records::<Record>(self.store.clone(), Kind::Datastore.prefix());
        let mut again = tokio::time::interval(AGAIN);
        let mine = |r: &Record| r.sharing.includes(self.host) && r.state == DatastoreState::Ready;
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                event = events.next() => event,
                _ = again.tick() => {
                    self.look_again(&known, &stop).await;
                    continue;
                }
            };
            match event {
                Some(Ok(RecordEvent::Resync { records, .. })) => {
                    let now: BTreeMap<_, _> = records
                        .into_iter()
                        .map(|r| (r.key, r.value))
                        .filter(|r| mine(&r.1))
                        .collect();
                    for gone in known.iter().filter(|(key, _)| !now.contains_key(*key)) {
                        self.close(gone.1.id).await;
                    }
                    known = now;
                    for record in known.values() {
                        self.try_open(record).await;
                    }
                    first.take().map(|first| first.send(()));
                    self.spawn_checks(&known, &stop);
                }
                Some(Ok(RecordEvent::Put(record))) if mine(&record.value) => {
                    self.try_open(&record.value).await;
                    known.insert(record.key, record.value);
                    self.spawn_checks(&known, &stop);
                }
                Some(Ok(RecordEvent::Put(_))) => {}
                Some(Ok(RecordEvent::Deleted { key, .. })) => {
                    if let Some(record) = known.remove(&key) {
                        self.close(record.id).await;
                    }
                }
                Some(Err(error)) => tracing::warn!(%error, "cannot watch datastores"),
                None => return,
            }
        }
    }

    async fn try_open(&self, record: &Record) {
        if let Err(error) = self.open(record).await {
            tracing::warn!(datastore = %record.meta.name, %error, "cannot open a datastore");
        }
    }

    /// Those that could not be opened are tried again, those that are open looked at.
    async fn look_again(
        self: &Arc<Self>,
        known: &BTreeMap<String, Record>,
        stop: &CancellationToken,
    ) {
        let closed = |r: &&Record| !self.all().contains_key(&r.id);
        for record in known.values().filter(closed).collect::<Vec<_>>() {
            // The condition says why it failed.
            let _ = self.open(record).await;
        }
        self.spawn_checks(known, stop);
    }

    /// Beside everything else: a file system or another server may take long.
    fn spawn_checks(self: &Arc<Self>, known: &BTreeMap<String, Record>, stop: &CancellationToken) {
        let records: Vec<Record> = known.values().cloned().collect();
        let (this, stop) = (self.clone(), stop.clone());
        let checks = async move {
            // Those who find the turn taken come again soon.
            let Ok(_turn) = this.checks.try_lock() else { return };
            for record in records {
                let place = this.all().get(&record.id).map(|open| open.place.clone());
                let Some(place) = place else { continue };
                match place.check().await {
                    Err(error @ StorageError::NotMounted { .. }) => {
                        tracing::warn!(datastore = %record.meta.name, %error, "lost a datastore");
                        this.lost(record.id, error.problem()).await;
                    }
                    _ => this.check(&record, &place).await,
                }
            }
        };
        tokio::spawn(async move { stop.run_until_cancelled(checks).await });
    }
}

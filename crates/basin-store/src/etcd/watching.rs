//! A watch that goes on over connections.
//!
//! A task of its own reads the stream as fast as etcd sends: a watcher that etcd
//! finds slow may miss changes when a compaction overtakes it (etcd issue 17529).
//! When the reader is slow instead, the stream is given up, and taken up again where
//! the reader is; if that history is gone by then, the reader is told so.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::errors::{Failure, chain};
use super::link::{Again, Conn, Link, probe};
use super::moments::{Moments, to_wire};
use super::prefix::range_end;
use super::rpc;
use super::wire::{WatchAsk, WatchCreateRequest, WatchRequest, WatchResponse};
use crate::store::{Change, Revision, StoreError, Watch};

type Item = Result<Vec<Change>, StoreError>;

/// Moments that wait for the reader.
const BUFFER: usize = 512;

/// Before a stream that etcd ended is opened again.
const PAUSE: Duration = Duration::from_millis(100);

/// A stream, and what it reads.
struct Opened {
    conn: Conn,
    stream: Streaming<WatchResponse>,
}

struct Watching {
    link: Arc<Link>,
    prefix: String,
    moments: Moments,
    /// Which cluster the revisions are of.
    cluster: Option<u64>,
    items: mpsc::Sender<Item>,
}

/// How a stream ended.
enum End {
    /// To be opened again.
    Again,
    /// The reader has to catch up first.
    Full,
    /// Nobody reads.
    Unread,
    Failed(StoreError),
}

/// Begins within the link's bound.
pub(crate) async fn watch(
    link: Arc<Link>,
    prefix: &str,
    after: Revision,
) -> Result<Watch, StoreError> {
    let (items, reader) = mpsc::channel(BUFFER);
    let (prefix, moments) = (prefix.to_owned(), Moments::new(after));
    let mut watching = Watching { link, prefix, moments, cluster: None, items };
    let first = watching.begin().await?;
    tokio::spawn(watching.run(first));
    Ok(Box::pin(ReceiverStream::new(reader)))
}

impl Watching {
    async fn begin(&mut self) -> Result<Opened, StoreError> {
        let link = Arc::clone(&self.link);
        let opened = link.repeat(Again::Always, |conn, limit| self.open(conn, limit)).await;
        let (opened, created) = opened.map_err(|failure| match failure {
            Failure::Compacted => StoreError::Compacted(self.moments.after()),
            other => super::link::plain(other),
        })?;
        self.check(&opened.conn, &created).await?;
        Ok(opened)
    }

    /// Opens a stream and reads its first answer, which says that the watch exists.
    async fn open(&self, conn: Conn, limit: Duration) -> Result<(Opened, WatchResponse), Status> {
        let create = WatchCreateRequest {
            key: super::prefix::start(&self.prefix),
            range_end: Bytes::from(range_end(&self.prefix)),
            start_revision: self.moments.first(),
            // So that a quiet watch knows how far it has seen, and need not begin at
            // a compacted revision after the next reconnection.
            progress_notify: true,
            fragment: true,
        };
        let request = WatchRequest { ask: Some(WatchAsk::Create(create)) };
        let until = Instant::now() + limit;
        let mut stream: Streaming<WatchResponse> =
            rpc::streaming(conn.channel.clone(), rpc::WATCH, request, limit).await?;
        let first = tokio::time::timeout_at(until, stream.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("the watch does not begin"))??;
        let first = first.ok_or_else(|| Status::unavailable("the watch ended at once"))?;
        if first.canceled {
            return Err(Status::unavailable(first.cancel_reason));
        }
        Ok((Opened { conn, stream }, first))
    }

    /// Whether the cluster's history is still the one that was watched: a backup that
    /// was restored has an older one, or that of another cluster, and etcd would wait
    /// for the revision to come round again.
    async fn check(&mut self, conn: &Conn, created: &WatchResponse) -> Result<(), StoreError> {
        let Some(header) = &created.header else { return Ok(()) };
        let after = self.moments.after();
        let known = *self.cluster.get_or_insert(header.cluster_id);
        if known != header.cluster_id {
            return Err(StoreError::Compacted(after));
        }
        if header.revision >= to_wire(after) {
            return Ok(());
        }
        // The member may just be behind; the quorum is not.
        let limit = Duration::from_secs(2);
        match probe(conn.channel.clone(), limit).await {
            Ok(answer) if answer.header.as_ref().is_some_and(|h| h.revision < to_wire(after)) => {
                Err(StoreError::Compacted(after))
            }
            // An error: the stream will meet it, too.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    async fn run(mut self, first: Opened) {
        let mut next = Some(first);
        let items = self.items.clone();
        loop {
            let end = match next.take() {
                Some(opened) => self.follow(opened).await,
                None => tokio::select! {
                    reopened = self.reopen() => match reopened {
                        Ok(Some(opened)) => {
                            next = Some(opened);
                            continue;
                        }
                        Ok(None) => End::Again,
                        Err(error) => End::Failed(error),
                    },
                    () = items.closed() => End::Unread,
                },
            };
            match end {
                End::Again => {
                    self.moments.reopen();
                    sleep(PAUSE).await;
                }
                End::Full => {
                    self.moments.reopen();
                    // Fails only if nobody reads, which the next turn finds out.
                    let _ = self.items.reserve_many(BUFFER / 2).await;
                }
                End::Unread => return,
                End::Failed(error) => {
                    // Nobody reads it: then nobody has to know.
                    let _ = self.items.send(Err(error)).await;
                    return;
                }
            }
        }
    }

    /// Takes the watch up again where it was, on whatever connection there is.
    async fn reopen(&mut self) -> Result<Option<Opened>, StoreError> {
        let conn = self.link.conn_at_last().await;
        match self.open(conn.clone(), self.link.shared.answer_within).await {
            Ok((opened, created)) => {
                self.check(&conn, &created).await?;
                Ok(Some(opened))
            }
            Err(status) => match super::errors::failure(&status) {
                Failure::Final(error @ StoreError::Unusable(_)) => Err(error),
                Failure::Compacted => Err(StoreError::Compacted(self.moments.after())),
                other => {
                    tracing::debug!(prefix = self.prefix, why = other.why(), "a watch waits");
                    self.link.doubt(&conn);
                    Ok(None)
                }
            },
        }
    }

    async fn follow(&mut self, mut opened: Opened) -> End {
        loop {
            let answer = tokio::select! {
                answer = opened.stream.message() => answer,
                () = opened.conn.retired.cancelled() => return End::Again,
                () = self.items.closed() => return End::Unread,
            };
            let answer = match answer {
                Ok(Some(answer)) => answer,
                Ok(None) => return End::Again,
                Err(status) => {
                    tracing::debug!(prefix = self.prefix, why = chain(&status), "a watch broke");
                    self.link.doubt(&opened.conn);
                    return End::Again;
                }
            };
            if answer.compact_revision != 0 {
                return End::Failed(StoreError::Compacted(self.moments.after()));
            }
            if answer.canceled {
                tracing::debug!(prefix = self.prefix, why = answer.cancel_reason, "a watch ended");
                self.link.doubt(&opened.conn);
                return End::Again;
            }
            if let Some(end) = self.hand_out(answer).await {
                return end;
            }
        }
    }

    async fn hand_out(&mut self, answer: WatchResponse) -> Option<End> {
        let moments = match self.moments.take(answer) {
            Ok(moments) => moments,
            Err(error) => return Some(End::Failed(error)),
        };
        let mut full = false;
        for moment in moments {
            match self.items.try_send(Ok(moment)) {
                Ok(()) => (),
                Err(mpsc::error::TrySendError::Closed(_)) => return Some(End::Unread),
                // What has been taken in is delivered, then the stream is closed.
                Err(mpsc::error::TrySendError::Full(moment)) => {
                    full = true;
                    if self.items.send(moment).await.is_err() {
                        return Some(End::Unread);
                    }
                }
            }
        }
        full.then_some(End::Full)
    }
}

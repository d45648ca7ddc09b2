//! The way to a member that has the quorum's ear.
//!
//! One task (in `keeper`) keeps one connection to one member, proven by a read that
//! the quorum confirmed, and replaces it when it goes bad. Everything else takes the
//! connection that is there, and says so when it doubts it. So a dead server, a cut
//! cable, a member that lost its leader and a learner are all noticed in one place,
//! and idle watches move on together with the rest.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::errors::{Failure, failure};
use super::rpc::{self, Method};
use super::wire::{RangeRequest, RangeResponse};
use crate::store::StoreError;

/// Whether the quorum answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Contact {
    /// When the latest question was asked that the quorum has answered: what was read
    /// is at least as new as that. `None`: it never answered yet.
    pub answered: Option<std::time::Instant>,
    /// Why no member answers now. `None`: one does.
    pub lost: Option<String>,
}

/// Holds the keeper: it ends with the last link.
pub(crate) struct Link {
    pub shared: Arc<Shared>,
    _keeper: DropGuard,
}

pub(crate) struct Shared {
    pub config: Mutex<Config>,
    /// What the requests use. `None` while no member answers.
    pub current: watch::Sender<Option<Conn>>,
    pub contact: watch::Sender<Contact>,
    /// Somebody doubts this connection, by its number.
    pub doubted: Mutex<Option<u64>>,
    pub wake: Notify,
    pub answer_within: Duration,
    pub probe_every: Duration,
}

#[derive(Clone)]
pub(crate) struct Config {
    pub endpoints: Arc<Vec<Endpoint>>,
    /// Counts the changes.
    pub version: u64,
}

/// A connection. Clones are the same.
#[derive(Clone)]
pub(crate) struct Conn {
    pub number: u64,
    pub endpoint: Endpoint,
    pub channel: Channel,
    /// Use another one from now on; what has been asked may still be answered.
    pub retired: CancellationToken,
    /// Nothing will be answered any more.
    pub dead: CancellationToken,
}

/// A member that has not answered a read by then is asked whether it lives.
const READ_ATTEMPT: Duration = Duration::from_millis(1500);
/// Between attempts.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a request waits while the quorum is known to be lost.
const LOST_WAIT: Duration = Duration::from_secs(1);

/// Whether a request may be sent again when it is not known to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// Twice is the same as once.
    Always,
    /// Only if it was certainly not done.
    IfNotDone,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds these locks can panic halfway.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    pub fn start(endpoints: Vec<Endpoint>, answer_within: Duration, probe_every: Duration) -> Self {
        let (stop, contact) = (CancellationToken::new(), Contact::default());
        let shared = Arc::new(Shared {
            config: Mutex::new(Config { endpoints: Arc::new(endpoints), version: 0 }),
            current: watch::Sender::new(None),
            contact: watch::Sender::new(contact),
            doubted: Mutex::new(None),
            wake: Notify::new(),
            answer_within,
            probe_every,
        });
        let (keeping, stopped) = (Arc::clone(&shared), stop.clone());
        tokio::spawn(
            async move { stopped.run_until_cancelled(super::keeper::keep(&keeping)).await },
        );
        Self { shared, _keeper: stop.drop_guard() }
    }

    pub fn replace(&self, endpoints: Vec<Endpoint>) {
        let mut config = lock(&self.shared.config);
        *config = Config { endpoints: Arc::new(endpoints), version: config.version + 1 };
        drop(config);
        self.shared.wake.notify_one();
    }

    /// The connection that is in use, or will be by `until`.
    pub async fn conn(&self, until: Instant) -> Result<Conn, StoreError> {
        let mut current = self.shared.current.subscribe();
        let found = tokio::time::timeout_at(until, current.wait_for(Option::is_some)).await;
        match found {
            Ok(Ok(conn)) => conn.clone().ok_or_else(|| self.unavailable()),
            Ok(Err(_)) | Err(_) => Err(self.unavailable()),
        }
    }

    /// As [`Link::conn`], however long it takes.
    pub async fn conn_at_last(&self) -> Conn {
        let mut current = self.shared.current.subscribe();
        loop {
            if let Ok(conn) = current.wait_for(Option::is_some).await
                && let Some(conn) = conn.clone()
            {
                return conn;
            }
        }
    }

    fn unavailable(&self) -> StoreError {
        let lost = self.shared.contact.borrow().lost.clone();
        StoreError::Unavailable(match lost {
            Some(why) => format!("no etcd member answers for the quorum ({why})"),
            None => "no etcd member has answered yet".to_owned(),
        })
    }

    /// When a request that begins now has to be answered: soon, if it is known that
    /// nobody can answer it.
    pub fn deadline(&self) -> Instant {
        let (now, contact) = (Instant::now(), self.shared.contact.borrow());
        let lost_long = contact.lost.is_some()
            && contact.answered.is_none_or(|at| at.elapsed() > self.shared.answer_within);
        now + if lost_long { LOST_WAIT } else { self.shared.answer_within }
    }

    /// Says that a connection may be bad.
    pub fn doubt(&self, conn: &Conn) {
        *lock(&self.shared.doubted) = Some(conn.number);
        self.shared.wake.notify_one();
    }

    /// Asks until the deadline, at whichever member is in use.
    pub async fn ask<Q, A>(&self, method: Method, request: Q, again: Again) -> Result<A, Failure>
    where
        Q: prost::Message + Clone + 'static,
        A: prost::Message + Default + 'static,
    {
        let ask = |conn: Conn, limit| rpc::unary(conn.channel, method, request.clone(), limit);
        self.repeat(again, ask).await
    }

    /// Runs `ask` on the connection in use, again and again until the deadline.
    pub async fn repeat<T, F>(
        &self,
        again: Again,
        ask: impl Fn(Conn, Duration) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let until = self.deadline();
        loop {
            let conn = self.conn(until).await.map_err(Failure::Final)?;
            let asked = Instant::now();
            let mut limit = until.saturating_duration_since(asked);
            if again == Again::Always {
                limit = limit.min(READ_ATTEMPT);
            }
            let outcome = tokio::select! {
                outcome = ask(conn.clone(), limit) => outcome,
                () = conn.dead.cancelled() => Err(Status::unavailable("the connection broke")),
            };
            let status = match outcome {
                Ok(answer) => {
                    self.shared.answered(asked);
                    return Ok(answer);
                }
                Err(status) => status,
            };
            let failure = failure(&status);
            match (&failure, again) {
                (Failure::NotDone(_), _) | (Failure::Unknown(_), Again::Always) => {
                    tracing::debug!(to = %conn.endpoint.uri(), why = failure.why(), "asking again");
                }
                (Failure::Unknown(_), Again::IfNotDone) => {
                    self.doubt(&conn);
                    return Err(failure);
                }
                _ => return Err(failure),
            }
            self.doubt(&conn);
            if Instant::now() + PAUSE >= until {
                return Err(failure);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl Shared {
    /// The quorum has answered what was asked then. Wakes who waits for changes of the
    /// contact only the first time: it changes all the time.
    pub fn answered(&self, asked: Instant) {
        let asked = asked.into_std();
        self.contact.send_if_modified(|contact| {
            let first = contact.answered.is_none();
            contact.answered = contact.answered.max(Some(asked));
            first
        });
    }
}

/// A read that only a member with a quorum answers.
pub(crate) async fn probe(channel: Channel, limit: Duration) -> Result<RangeResponse, Status> {
    let key = Bytes::from_static(b"\0");
    let request = RangeRequest { key, count_only: true, ..RangeRequest::default() };
    rpc::unary(channel, rpc::RANGE, request, limit).await
}

/// What is left of a failure for who asked for nothing that has a better answer.
pub(crate) fn plain(failure: Failure) -> StoreError {
    match failure {
        Failure::Final(e) => e,
        other => StoreError::Unavailable(other.why()),
    }
}

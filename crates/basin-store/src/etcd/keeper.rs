//! Finds a member that answers for the quorum, and another one when it stops.

use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use super::errors::chain;
use super::link::{Config, Conn, Shared, lock, probe};
use super::options::CONNECT_WITHIN;

/// How long a member has for a sign of life.
const ALIVE_WITHIN: Duration = Duration::from_secs(2);
/// The same, when a request has already waited for longer.
const DOUBTED_ALIVE_WITHIN: Duration = Duration::from_secs(1);
/// How much later each next member is tried, while none has answered.
const STAGGER: Duration = Duration::from_millis(200);
/// Between rounds through all members.
const ROUND: Duration = Duration::from_millis(200);

/// Never returns.
pub(crate) async fn keep(shared: &Shared) {
    let (mut number, mut first) = (0, 0);
    loop {
        let config = lock(&shared.config).clone();
        let (at, endpoint, channel) = match find(shared, &config, first).await {
            Ok(found) => found,
            Err(why) => {
                lose(shared, why);
                sleep(ROUND).await;
                continue;
            }
        };
        number += 1;
        let (retired, dead) = (CancellationToken::new(), CancellationToken::new());
        let conn = Conn { number, endpoint, channel, retired, dead };
        tracing::debug!(member = %conn.endpoint.uri(), "connected to etcd");
        publish(shared, conn.clone());
        match guard(shared, &config, &conn).await {
            Over::Reconfigured => first = 0,
            Over::Failed(why) => {
                tracing::warn!(member = %conn.endpoint.uri(), why, "lost the connection to etcd");
                shared.current.send_replace(None);
                conn.retired.cancel();
                conn.dead.cancel();
                // The others come first now.
                first = at + 1;
            }
        }
    }
}

/// The old one, if it is still good, is left to what it was asked.
fn publish(shared: &Shared, conn: Conn) {
    if let Some(old) = shared.current.send_replace(Some(conn)) {
        old.retired.cancel();
    }
    shared.contact.send_if_modified(|contact| contact.lost.take().is_some());
}

fn lose(shared: &Shared, why: String) {
    if let Some(old) = shared.current.send_replace(None) {
        old.retired.cancel();
        old.dead.cancel();
    }
    shared.contact.send_if_modified(|contact| {
        let news = contact.lost.is_none();
        if news {
            tracing::error!(why, "no etcd member answers");
        }
        contact.lost = Some(why);
        news
    });
}

enum Over {
    Reconfigured,
    Failed(String),
}

/// Returns when the connection must be replaced.
async fn guard(shared: &Shared, config: &Config, conn: &Conn) -> Over {
    loop {
        if lock(&shared.config).version != config.version {
            return Over::Reconfigured;
        }
        let doubted = lock(&shared.doubted).take() == Some(conn.number);
        let answered = shared.contact.borrow().answered;
        let quiet = answered.map_or(shared.probe_every, |at| at.elapsed());
        if !doubted && quiet < shared.probe_every {
            let _ = timeout(shared.probe_every - quiet, shared.wake.notified()).await;
            continue;
        }
        let limit = if doubted { DOUBTED_ALIVE_WITHIN } else { ALIVE_WITHIN };
        let asked = Instant::now();
        match probe(conn.channel.clone(), limit).await {
            Ok(_) => shared.answered(asked),
            Err(status) => return Over::Failed(chain(&status)),
        }
    }
}

type Found = (usize, Endpoint, Channel);

/// The first of the members that answers for the quorum. Each has a start over the
/// next; one that fails lets the next begin at once.
async fn find(shared: &Shared, config: &Config, first: usize) -> Result<Found, String> {
    let count = config.endpoints.len();
    let mut waiting = (0..count).map(|n| (first + n) % count);
    let mut trying: FuturesUnordered<BoxFuture<'_, (String, Result<Found, String>)>> =
        FuturesUnordered::new();
    let mut failed = Vec::new();
    loop {
        if let Some(at) = waiting.next() {
            let endpoint = config.endpoints[at].clone();
            trying.push(Box::pin(async move {
                let name = endpoint.uri().to_string();
                (name, attempt(shared, at, endpoint).await)
            }));
        } else if trying.is_empty() {
            return Err(failed.join("; "));
        }
        let all_begun = waiting.len() == 0;
        let outcome = tokio::select! {
            outcome = trying.next() => outcome,
            () = sleep(STAGGER), if !all_begun => None,
        };
        match outcome {
            Some((_, Ok(found))) => return Ok(found),
            Some((name, Err(why))) => {
                failed.push(format!("{}: {why}", name.trim_end_matches('/')));
            }
            None => (),
        }
    }
}

async fn attempt(shared: &Shared, at: usize, endpoint: Endpoint) -> Result<Found, String> {
    // The connector's own limit does not cover the TLS handshake.
    let channel = timeout(CONNECT_WITHIN, endpoint.connect())
        .await
        .map_err(|_| format!("no connection within {CONNECT_WITHIN:?}"))?
        .map_err(|e| chain(&e))?;
    let asked = Instant::now();
    probe(channel.clone(), ALIVE_WITHIN).await.map_err(|status| chain(&status))?;
    shared.answered(asked);
    Ok((at, endpoint, channel))
}

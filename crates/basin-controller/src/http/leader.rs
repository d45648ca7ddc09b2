//! Which server answers: whoever is asked answers questions from what it knows, and
//! says how old that is; changes are the leader's, to whom they are passed on.

use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use basin_model::HostId;
use basin_model::task::Problem;
use basin_node::NodeError;
use basin_node::remote::{Peer, ask_whether_leads};
use basin_store::Revision;

use super::forward::{forward, forwarded_by};
use super::{ApiError, Context};
use crate::app::auth::Actor;
use crate::app::problems;
use crate::cluster::leader::Lead;

/// In answers: what was changed is known from this revision of the store on. In requests
/// that are passed on: what the server knew that was asked first.
pub const REVISION: HeaderName = HeaderName::from_static("basin-revision");
/// In answers of a server that does not reach the store: how old they may be, in seconds.
pub const AGE: HeaderName = HeaderName::from_static("basin-state-age");

/// A leader is found in this time, or there is none now.
const LED_WITHIN: Duration = Duration::from_secs(8);
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// The change was made; the server that was asked is to know of it when it answers.
const SEEN_WITHIN: Duration = Duration::from_secs(3);

/// The server that somebody asked first: what a path or a datastore without a server is about.
#[derive(Debug, Clone, Copy)]
pub struct Asked(pub HostId);

pub async fn to_leader(
    State(context): State<Context>,
    mut request: Request,
    next: Next,
) -> Response {
    let local = context.app.nodes().local();
    let asked = forwarded_by(&request).unwrap_or(local);
    request.extensions_mut().insert(Asked(asked));
    if !is_for_leader(request.method(), request.uri().path()) {
        let mut answer = next.run(request).await;
        say_age(&context, &mut answer);
        return answer;
    }
    let reads = request.method() == Method::GET;
    match leader(&context).await {
        Ok(Leader::Alone) => next.run(request).await,
        Ok(Leader::Me) => {
            // Nobody is refused for what another server knew to be otherwise.
            let known = forwarded_by(&request).and_then(|_| revision_of(request.headers()));
            see(&context, known).await;
            let mut answer = next.run(request).await;
            let revision = context.app.inventory().read().changed;
            answer.headers_mut().insert(REVISION, revision.0.into());
            answer
        }
        Ok(Leader::Other(peer)) => {
            let Some(actor) = request.extensions().get::<Actor>().cloned() else {
                return ApiError(problems::unauthenticated()).into_response();
            };
            let known = context.app.inventory().read().changed;
            request.headers_mut().insert(REVISION, known.0.into());
            let answer = forward(request, &peer, &actor, local).await;
            see(&context, revision_of(answer.headers())).await;
            answer
        }
        // As far as it is known here.
        Err(_) if reads => {
            let mut answer = next.run(request).await;
            say_age(&context, &mut answer);
            answer
        }
        Err(problem) => ApiError(problem).into_response(),
    }
}

enum Leader {
    /// There is one server only.
    Alone,
    Me,
    /// It can be reached.
    Other(Peer),
}

/// Who leads, once that is settled, it can be reached and says so itself: one that died a
/// moment ago is replaced soon. What is known until the time is over says why there is none.
async fn leader(context: &Context) -> Result<Leader, Problem> {
    let until = Instant::now() + LED_WITHIN;
    let mut changes = context.app.leadership.changes();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let host = match context.app.leadership.settled(left).await {
            Lead::Alone => return Ok(Leader::Alone),
            Lead::Me(_) => return Ok(Leader::Me),
            Lead::Nobody => return Err(problems::no_leader()),
            Lead::Other(host) => host,
        };
        let why = match context.app.nodes().peer(host) {
            // An earlier daemon of this server's: its lease is about to end.
            _ if host == context.app.nodes().local() => problems::no_leader(),
            Ok(peer) => match ask_whether_leads(&peer).await {
                Ok(true) => return Ok(Leader::Other(peer)),
                // An earlier release does not say, and is asked.
                Err(NodeError(why)) if why.code == "host-too-old" => {
                    return Ok(Leader::Other(peer));
                }
                // It led, before it was restarted; or is about to.
                Ok(false) => problems::no_leader(),
                Err(NodeError(why)) => why,
            },
            Err(_) => problems::no_leader(),
        };
        if Instant::now() >= until {
            return Err(without(why, is_lost(context)));
        }
        let another = changes.wait_for(|lead| *lead != Lead::Other(host));
        let _ = tokio::time::timeout(ASK_AGAIN, another).await;
    }
}

fn is_lost(context: &Context) -> bool {
    context.app.seat.contact().is_some_and(|contact| contact.lost.is_some())
}

/// Pure. Why nobody does it. Without the store, whoever led last is not who leads: that it
/// cannot be reached is not what has to be mended.
fn without(why: Problem, store_lost: bool) -> Problem {
    if store_lost { problems::no_leader() } else { why }
}

/// Whoever changes something here reads it here, next; and is heard with what is known here.
async fn see(context: &Context, revision: Option<u64>) {
    if let Some(revision) = revision {
        let seen = context.app.inventory().at_least(Revision(revision));
        let _ = tokio::time::timeout(SEEN_WITHIN, seen).await;
    }
}

fn revision_of(headers: &HeaderMap) -> Option<u64> {
    headers.get(REVISION).and_then(|v| v.to_str().ok()?.parse().ok())
}

/// Pure. Whether the leader is to answer: it changes something, or is about tasks, whose
/// progress only their driver knows.
fn is_for_leader(method: &Method, path: &str) -> bool {
    let own = ["/v1/cluster", "/v1/cluster/join"].contains(&path);
    let reads = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    let tasks = path == "/v1/tasks" || path.starts_with("/v1/tasks/");
    !own && (!reads || tasks)
}

fn say_age(context: &Context, answer: &mut Response) {
    let Some(contact) = context.app.seat.contact() else { return };
    if contact.lost.is_none() {
        return;
    }
    let seconds = contact.age.as_secs().to_string();
    if let Ok(value) = HeaderValue::from_str(&seconds) {
        answer.headers_mut().insert(AGE, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_of_before_is_no_reason() {
        let why = || problems::silent("srv1", Duration::from_secs(1));
        assert_eq!(without(why(), false), why());
        assert_eq!(without(why(), true), problems::no_leader());
    }

    #[test]
    fn changes_and_tasks_are_the_leaders() {
        let check = |method: Method, path: &str, expect: bool| {
            assert_eq!(is_for_leader(&method, path), expect, "{method} {path}");
        };
        check(Method::GET, "/v1/vms", false);
        check(Method::POST, "/v1/vms", true);
        check(Method::GET, "/v1/tasks", true);
        check(Method::GET, "/v1/tasks/x", true);
        check(Method::POST, "/v1/cluster", false);
        check(Method::POST, "/v1/cluster/join", false);
        check(Method::POST, "/v1/cluster/join-tokens", true);
        check(Method::GET, "/v1/vms/a/console", false);
    }
}

//! `/v1/events`: every change, as server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Sse;
use axum::response::sse::{Event as SseEvent, KeepAlive};
use basin_api::event::{Change as What, Event};
use basin_model::keys::{Kind, ROOT};
use basin_store::{Change, Revision, StoreError, Watch};
use futures::{Stream, StreamExt, stream};
use serde::Serialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Allow, View};
use super::convert;
use super::extract::Pairs;
use super::{ApiError, Context};
use crate::app::inventory::Snapshot;
use crate::app::{baseline, problems, store_problem};

const KINDS: [&str; 8] = ["vm", "volume", "image", "datastore", "network", "host", "task", "token"];

pub fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(events))
}

/// Every change after a revision, in order, until the client hangs up. A client
/// that reconnects with `Last-Event-ID` misses nothing.
#[utoipa::path(get, path = "/v1/events", tag = "events",
    params(("kind" = Option<Vec<String>>, Query, description = "only of these kinds; repeatable"),
           ("after" = Option<u64>, Query, description = "a list's revision; now when absent"),
           ("Last-Event-ID" = Option<String>, Header, description = "goes before `after`")),
    responses((status = 200, content_type = "text/event-stream", body = Event),
              (status = "default", body = basin_api::Problem)))]
async fn events(
    _: Allow<View>,
    State(context): State<Context>,
    headers: HeaderMap,
    query: Pairs,
) -> Result<Sse<impl Stream<Item = Result<SseEvent, Infallible>>>, ApiError> {
    let mut kinds = Vec::new();
    let mut after = None;
    for (key, value) in query.only(&["kind", "after"])? {
        match key.as_str() {
            "kind" if KINDS.contains(&value.as_str()) => kinds.push(value),
            "kind" => return Err(problems::malformed(format!("query: no kind '{value}'")).into()),
            _ => after = Some(revision(&value)?),
        }
    }
    if let Some(last) = headers.get("last-event-id").and_then(|v| v.to_str().ok()) {
        after = Some(revision(last)?);
    }
    let after = after.unwrap_or_else(|| context.app.inventory().read().revision);
    let start = match context.app.store().watch(ROOT, after).await {
        Ok(watch) => watch,
        Err(StoreError::Compacted(_)) => ended(StoreError::Compacted(after)),
        Err(e) => return Err(store_problem(&e).into()),
    };
    let stream = start
        .then(move |batch| translate(context.clone(), kinds.clone(), batch))
        .flat_map(stream::iter);
    // A client that hears nothing cannot tell a quiet data centre from a dead server.
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(Duration::from_secs(10))))
}

fn revision(text: &str) -> Result<Revision, ApiError> {
    let bad = |_| problems::malformed(format!("query: '{text}' is not a revision"));
    Ok(Revision(text.parse().map_err(bad)?))
}

fn ended(e: StoreError) -> Watch {
    Box::pin(stream::iter([Err(e)]))
}

async fn translate(
    context: Context,
    kinds: Vec<String>,
    batch: Result<Vec<Change>, StoreError>,
) -> Vec<Result<SseEvent, Infallible>> {
    let Ok(batch) = batch else { return vec![Ok(resync(&context))] };
    // Names in the events come from the inventory, which may be a moment behind.
    if let Some(last) = batch.iter().map(Change::revision).max() {
        context.app.inventory().at_least(last).await;
    }
    let snapshot = context.app.inventory().read();
    batch
        .iter()
        .filter_map(|change| event(change, &kinds, &snapshot))
        .filter_map(|event| sse(&event))
        .map(Ok)
        .collect()
}

fn resync(context: &Context) -> SseEvent {
    let revision = context.app.inventory().read().revision.0;
    let event = Event {
        change: What::Resync,
        kind: String::new(),
        id: String::new(),
        revision,
        object: None,
    };
    sse(&event).unwrap_or_default().event("resync")
}

fn sse(event: &Event) -> Option<SseEvent> {
    let sse = SseEvent::default().id(event.revision.to_string()).event(event.kind.clone());
    sse.json_data(event).ok()
}

/// What a change of the store is to the API's users; nothing, for most keys.
/// One of these kinds, or of any where none is named: nothing is made for nobody.
fn event(change: &Change, kinds: &[String], snapshot: &Snapshot) -> Option<Event> {
    let (key, revision) = match change {
        Change::Put(entry) => (&entry.key, entry.modified.0),
        Change::Delete { key, revision } => (key, revision.0),
    };
    let (kind, id) = Kind::parse(key)?;
    // A status is part of what it is the status of.
    let (kind, part) = match kind {
        Kind::VmStatus => (Kind::Vm, true),
        Kind::HostStatus | Kind::Alive => (Kind::Host, true),
        kind => (kind, false),
    };
    let word = match kind {
        Kind::Vm => "vm",
        Kind::Volume => "volume",
        Kind::Image => "image",
        Kind::Datastore => "datastore",
        Kind::Network => "network",
        Kind::Host => "host",
        Kind::Task => "task",
        Kind::Token => "token",
        Kind::Workflow | Kind::VmStatus | Kind::HostStatus | Kind::Alive => return None,
        Kind::JoinToken | Kind::RemovedHost | Kind::Issued => return None,
    };
    if !kinds.is_empty() && !kinds.iter().any(|kind| kind == word) {
        return None;
    }
    let event = |change, object| {
        Some(Event { change, kind: word.to_owned(), id: id.to_owned(), revision, object })
    };
    match change {
        // A server that is no longer alive has not gone, but changed.
        Change::Delete { .. } if key.starts_with(&Kind::Alive.prefix()) => {
            event(What::Updated, object(kind, id, snapshot))
        }
        Change::Delete { .. } if part => None,
        Change::Delete { .. } => event(What::Deleted, None),
        Change::Put(entry) => {
            let created = entry.created == entry.modified && !part;
            let what = if created { What::Created } else { What::Updated };
            event(what, object(kind, id, snapshot))
        }
    }
}

fn object(kind: Kind, id: &str, snapshot: &Snapshot) -> Option<serde_json::Value> {
    fn json(value: impl Serialize) -> Option<serde_json::Value> {
        serde_json::to_value(value).ok()
    }
    match kind {
        Kind::Vm => json(convert::vm::vm(snapshot.vm(id).ok()?, snapshot)),
        Kind::Volume => json(convert::volume::volume(snapshot.volume(id).ok()?, snapshot)),
        Kind::Image => json(convert::image::image(snapshot.image(id).ok()?, snapshot)),
        Kind::Datastore => {
            json(convert::datastore::datastore(snapshot.datastore(id).ok()?, None, snapshot))
        }
        Kind::Network => json(convert::network::network(snapshot.network(id).ok()?, snapshot)),
        Kind::Host => {
            let host = snapshot.host(id).ok()?;
            json(convert::host::host(host, snapshot, &baseline::of(snapshot)))
        }
        Kind::Task => json(convert::task::task(snapshot.task(id).ok()?)),
        Kind::Token => json(convert::token::token(snapshot.token(id).ok()?)),
        Kind::Workflow | Kind::VmStatus | Kind::HostStatus | Kind::Alive => None,
        Kind::JoinToken | Kind::RemovedHost | Kind::Issued => None,
    }
}

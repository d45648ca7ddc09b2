//! Methods that take long: the request stays open, the answer is a line of JSON for
//! every step forward and one for the end. Closing the request asks to cancel; the
//! last line then says how that went. A lost connection cancels as well.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use basin_model::Bytes as Size;
use basin_storage::Progress;
use futures::Stream;
use http_body_util::BodyExt;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::body::feed;
use super::call::{encode, failed, malformed, post};
use super::methods::LongMethod;
use super::peer::Peer;
use super::router::Served;
use super::trouble::garbled;
use crate::NodeError;

/// More often nobody can read it.
const TELL_EVERY: Duration = Duration::from_millis(100);
const LINE_MAX: usize = 4 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line<T> {
    Progress { done: Size, total: Option<Size> },
    Done(T),
    Failed(basin_model::task::Problem),
}

/// Pieces of a stream, put together to lines.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    /// The next whole line.
    fn next(&mut self) -> Option<Vec<u8>> {
        let end = self.0.iter().position(|b| *b == b'\n')?;
        let rest = self.0.split_off(end + 1);
        Some(std::mem::replace(&mut self.0, rest))
    }

    /// False: longer than any line is.
    fn add(&mut self, bytes: &[u8]) -> bool {
        self.0.extend_from_slice(bytes);
        self.0.len() <= LINE_MAX
    }
}

// The asking end.

impl Peer {
    /// Asks a long method of the server's node, and passes on how far it is.
    pub(super) async fn call_long<M: LongMethod>(
        &self,
        method: M,
        progress: Progress,
        cancel: CancellationToken,
    ) -> Result<M::Answer, NodeError> {
        let (feed, body) = feed();
        let mut args = encode(&method);
        args.push(b'\n');
        // There is room for it, and whether it was read is seen by the answer.
        let _ = feed.send(args.into()).await;
        let mut feed = Some(feed);
        let asked = self.send_noting(post(M::NAME, body));
        let mut asked = std::pin::pin!(asked);
        let (response, noted) = loop {
            tokio::select! {
                answered = &mut asked => break answered?,
                () = cancel.cancelled(), if feed.is_some() => {
                    if let Some(feed) = feed.take() {
                        feed.end().await;
                    }
                }
            }
        };
        let response = self.accepted(M::NAME, response, &noted).await?;
        let mut body = response.into_body();
        let mut lines = Lines::default();
        loop {
            while let Some(line) = lines.next() {
                match serde_json::from_slice(&line) {
                    Ok(Line::Progress { done, total }) => progress(done, total),
                    Ok(Line::Done(answer)) => return Ok(answer),
                    Ok(Line::Failed(problem)) => return Err(NodeError(problem)),
                    // A newer server may tell more.
                    Err(error) => tracing::debug!(%error, "a line is passed over"),
                }
            }
            let frame = tokio::select! {
                frame = body.frame() => frame,
                () = cancel.cancelled(), if feed.is_some() => {
                    if let Some(feed) = feed.take() {
                        feed.end().await;
                    }
                    continue;
                }
            };
            match frame {
                Some(Ok(frame)) => {
                    let data = frame.into_data().unwrap_or_default();
                    if !lines.add(&data) {
                        return Err(garbled(self.server(), "a line of it is too long"));
                    }
                }
                Some(Err(error)) => return Err(self.broken(&noted, &error).await),
                None => return Err(garbled(self.server(), "it ends before its end")),
            }
        }
    }
}

// The answering end.

type How = (Size, Option<Size>);

/// Handles a long method.
pub(super) async fn handle<M: LongMethod>(State(served): State<Served>, body: Body) -> Response {
    let mut body = body;
    let mut lines = Lines::default();
    let first = loop {
        if let Some(line) = lines.next() {
            break line;
        }
        let whole = match body.frame().await {
            Some(Ok(frame)) => lines.add(&frame.into_data().unwrap_or_default()),
            _ => false,
        };
        if !whole {
            // Without its line end it is refused as what it is.
            break std::mem::take(&mut lines.0);
        }
    };
    let method: M = match serde_json::from_slice(&first) {
        Ok(method) => method,
        Err(unread) => return malformed(&unread),
    };
    let cancel = CancellationToken::new();
    let hung_up = cancel.clone();
    tokio::spawn(async move {
        let end = async { while let Some(Ok(_)) = body.frame().await {} };
        tokio::select! {
            () = end => hung_up.cancel(),
            () = hung_up.cancelled() => {}
        }
    });
    let (tell, told) = watch::channel((Size::ZERO, None));
    let progress: Progress = Arc::new(move |done, total| {
        tell.send_replace((done, total));
    });
    let guard = cancel.clone().drop_guard();
    let work = tokio::spawn(async move {
        let _turn = served.turns.wait(method.turn()).await;
        method.run(&*served.node, progress, cancel).await
    });
    Body::from_stream(report::<M::Answer>(work, told, guard)).into_response()
}

/// The lines of an answer. Dropped before its end, it cancels the work.
fn report<A: Serialize + Send + 'static>(
    mut work: JoinHandle<Result<A, NodeError>>,
    mut told: watch::Receiver<How>,
    guard: DropGuard,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let (lines, written) = mpsc::channel(1);
    tokio::spawn(async move {
        let _guard = guard;
        let mut before: How = (Size::ZERO, None);
        let over = loop {
            tokio::select! {
                biased;
                over = &mut work => break over,
                Ok(()) = told.changed() => before = *told.borrow_and_update(),
                () = lines.closed() => return,
            }
            if lines.send(Ok(progress_line(before))).await.is_err() {
                return;
            }
            // What comes meanwhile is told together.
            if let Ok(over) = tokio::time::timeout(TELL_EVERY, &mut work).await {
                break over;
            }
        };
        // How far it came at last goes before how it ended.
        let now = *told.borrow();
        if now != before && lines.send(Ok(progress_line(now))).await.is_err() {
            return;
        }
        // Whoever hung up does not want to know.
        let _ = lines.send(Ok(text(&last(over)))).await;
    });
    ReceiverStream::new(written)
}

fn progress_line((done, total): How) -> Bytes {
    text(&Line::<()>::Progress { done, total })
}

fn last<A>(over: Result<Result<A, NodeError>, tokio::task::JoinError>) -> Line<A> {
    match over {
        Ok(Ok(answer)) => Line::Done(answer),
        Ok(Err(error)) => Line::Failed(error.0),
        Err(panic) => Line::Failed(failed(&panic).0),
    }
}

fn text<T: Serialize>(line: &Line<T>) -> Bytes {
    let mut bytes = encode(line);
    bytes.push(b'\n');
    bytes.into()
}

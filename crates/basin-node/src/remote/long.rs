//! Methods that take long: the request stays open, the answer is a line of JSON for
//! every step forward and one for the end. Closing the request asks to cancel; the
//! last line then says how that went. A lost connection cancels as well.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use basin_model::Bytes as Size;
use basin_storage::Progress;
use futures::{Stream, stream};
use http_body_util::BodyExt;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::body::feed;
use super::call::{decode, encode, failed, post};
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
                Some(Err(error)) => return Err(self.broken(&noted, &error)),
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
    let method = match decode::<M>(&first) {
        Ok(method) => method,
        Err(refusal) => return refusal,
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

enum Stage<A> {
    Running(JoinHandle<Result<A, NodeError>>),
    Over(Box<Line<A>>),
    End,
}

/// The lines of an answer. Dropped before its end, it cancels the work.
fn report<A: Serialize + Send + 'static>(
    work: JoinHandle<Result<A, NodeError>>,
    told: watch::Receiver<How>,
    guard: DropGuard,
) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> {
    let start = (Stage::Running(work), told, guard);
    stream::unfold(start, |(mut stage, mut told, guard)| async move {
        loop {
            match stage {
                Stage::Running(mut work) => {
                    let over = tokio::select! {
                        biased;
                        over = &mut work => over,
                        Ok(()) = told.changed() => {
                            let (done, total) = *told.borrow_and_update();
                            let line = text(&Line::<()>::Progress { done, total });
                            // What comes meanwhile is told together.
                            if let Ok(over) = tokio::time::timeout(TELL_EVERY, &mut work).await {
                                stage = Stage::Over(Box::new(last(over)));
                            } else {
                                stage = Stage::Running(work);
                            }
                            return Some((Ok(line), (stage, told, guard)));
                        }
                    };
                    stage = Stage::Over(Box::new(last(over)));
                }
                Stage::Over(line) => {
                    // How far it came at last goes before how it ended.
                    if told.has_changed().unwrap_or(false) {
                        let (done, total) = *told.borrow_and_update();
                        let text = text(&Line::<()>::Progress { done, total });
                        return Some((Ok(text), (Stage::Over(line), told, guard)));
                    }
                    return Some((Ok(text(&*line)), (Stage::End, told, guard)));
                }
                Stage::End => return None,
            }
        }
    })
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

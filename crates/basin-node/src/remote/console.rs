//! Consoles: what is typed goes in the request's body, what is said comes in the
//! answer's, both open until either end closes. The answer begins with the length of
//! the history in four bytes, and the history.

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use basin_model::VmId;
use futures::stream;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::body::{Feed, feed};
use super::call::{post, refuse};
use super::io::Noted;
use super::peer::Peer;
use super::router::Served;
use super::trouble::garbled;
use crate::NodeError;
use crate::api::ConsoleLink;

pub(super) const NAME: &str = "console";
pub(super) const LOG: &str = "console_log";
const HISTORY_MAX: usize = 16 << 20;

#[derive(Serialize, Deserialize)]
pub(super) struct Of {
    vm: VmId,
}

#[derive(Serialize, Deserialize)]
pub(super) struct LogOf {
    vm: VmId,
    bytes: usize,
}

impl Peer {
    pub(super) async fn console(&self, vm: VmId) -> Result<ConsoleLink, NodeError> {
        let (feed, body) = feed();
        let (response, noted) = self.send_noting(post(&format!("{NAME}?vm={vm}"), body)).await?;
        let response = self.accepted(NAME, response, &noted).await?;
        let mut body = response.into_body();
        let mut begun = Vec::new();
        let (history, rest) = loop {
            if let Some(split) = split(&begun) {
                break split;
            }
            match body.frame().await {
                Some(Ok(frame)) => begun.extend(frame.into_data().unwrap_or_default()),
                Some(Err(error)) => return Err(self.broken(&noted, &error).await),
                None => return Err(garbled(self.server(), "it ends before its end")),
            }
            if begun.len() > HISTORY_MAX {
                return Err(garbled(self.server(), "the console's past is too long"));
            }
        };
        let (said, output) = mpsc::channel(64);
        let (input, typed) = mpsc::channel(16);
        let peer = self.clone();
        tokio::spawn(async move {
            // Both ends at once: HTTP/2 takes a stream for open while either half is.
            tokio::select! {
                () = say(peer, body, rest, noted, said) => {}
                () = write(typed, feed) => {}
            }
        });
        Ok(ConsoleLink { history, output, input })
    }

    pub(super) async fn console_log(&self, vm: VmId, bytes: usize) -> Result<Vec<u8>, NodeError> {
        let request = post(&format!("{LOG}?vm={vm}&bytes={bytes}"), super::full(Bytes::new()));
        let (response, noted) = self.send_noting(request).await?;
        let response = self.accepted(LOG, response, &noted).await?;
        match response.into_body().collect().await {
            Ok(log) => Ok(log.to_bytes().into()),
            Err(error) => Err(self.broken(&noted, &error).await),
        }
    }
}

/// History and what follows it, once the history is whole.
fn split(begun: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let (length, rest) = begun.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (history, rest) = rest.split_at_checked(length)?;
    Some((history.to_vec(), rest.to_vec()))
}

/// Passes on what the console says, until it ends or nobody listens.
async fn say(
    peer: Peer,
    mut body: Incoming,
    rest: Vec<u8>,
    noted: Noted,
    said: mpsc::Sender<Vec<u8>>,
) {
    if !rest.is_empty() && said.send(rest).await.is_err() {
        return;
    }
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = said.closed() => return,
        };
        let bytes = match frame {
            Some(Ok(frame)) => frame.into_data().unwrap_or_default().into(),
            Some(Err(error)) => {
                let why = peer.broken(&noted, &error).await.0.detail;
                let words = format!("\r\n[the console broke off: {why}]\r\n").into_bytes();
                let _ = said.send(words).await;
                return;
            }
            None => return,
        };
        if said.send(bytes).await.is_err() {
            return;
        }
    }
}

/// Passes on what is typed. The last writer's going does not close the console, nor
/// does the other end's reading no more: what the console says decides.
async fn write(mut typed: mpsc::Receiver<Vec<u8>>, feed: Feed) {
    while let Some(bytes) = typed.recv().await {
        if feed.send(bytes.into()).await.is_err() {
            break;
        }
    }
    std::future::pending().await
}

pub(super) async fn handle(
    State(served): State<Served>,
    Query(of): Query<Of>,
    body: Body,
) -> Response {
    let link = match served.node.console(of.vm).await {
        Ok(link) => link,
        Err(error) => return refuse(error),
    };
    let input = link.input;
    tokio::spawn(async move {
        let mut body = body;
        while let Some(Ok(frame)) = body.frame().await {
            let bytes = frame.into_data().unwrap_or_default().into();
            if input.send(bytes).await.is_err() {
                return;
            }
        }
    });
    let mut begin = u32::try_from(link.history.len()).unwrap_or(0).to_be_bytes().to_vec();
    begin.extend(link.history);
    let said = stream::unfold((Some(begin), link.output), |(begin, mut output)| async move {
        let bytes = match begin {
            Some(begin) => begin,
            None => output.recv().await?,
        };
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(bytes)), (None, output)))
    });
    plain(Body::from_stream(said))
}

pub(super) async fn handle_log(State(served): State<Served>, Query(of): Query<LogOf>) -> Response {
    match served.node.console_log(of.vm, of.bytes).await {
        Ok(log) => plain(Body::from(log)),
        Err(error) => refuse(error),
    }
}

fn plain(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response()
}

//! A question and its answer, both JSON: the two ends of it.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, Limited};
use hyper::Method as Verb;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::PATH;
use super::body::{PeerBody, full};
use super::io::Noted;
use super::methods::Method;
use super::peer::Peer;
use super::router::Served;
use super::trouble::{garbled, too_old};
use crate::NodeError;
use crate::problem::problem;

/// The figures of a full server are a few MiB.
const ANSWER_MAX: usize = 256 << 20;

/// What a refusal carries, so that it arrives as it was.
#[derive(Debug, Serialize, Deserialize)]
struct Refusal {
    error: basin_model::task::Problem,
}

/// The code of a refusal to do what nobody here has heard of.
pub(super) const UNKNOWN: &str = "unknown-method";

// The asking end.

impl Peer {
    /// Asks a method of the server's node.
    pub(super) async fn call<M: Method>(&self, method: M) -> Result<M::Answer, NodeError> {
        let body = Bytes::from(encode(&method));
        let ask = || self.try_send(post(M::NAME, full(body.clone())));
        let (response, noted) = match ask().await {
            // Whatever a node is asked may be asked twice.
            Err(lost) if lost.stale => ask().await.map_err(|lost| lost.error)?,
            answered => answered.map_err(|lost| lost.error)?,
        };
        self.answer(M::NAME, response, &noted).await
    }

    /// Reads a whole answer, or the refusal that came instead.
    pub(super) async fn answer<A: DeserializeOwned>(
        &self,
        method: &str,
        response: hyper::Response<Incoming>,
        noted: &Noted,
    ) -> Result<A, NodeError> {
        let response = self.accepted(method, response, noted).await?;
        let bytes = self.whole(response, noted).await?;
        serde_json::from_slice(&bytes).map_err(|e| garbled(self.server(), e))
    }

    /// The answer, if it is none of refusal.
    pub(super) async fn accepted(
        &self,
        method: &str,
        response: hyper::Response<Incoming>,
        noted: &Noted,
    ) -> Result<hyper::Response<Incoming>, NodeError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let bytes = self.whole(response, noted).await?;
        match serde_json::from_slice::<Refusal>(&bytes) {
            Ok(refusal) if refusal.error.code == UNKNOWN => Err(too_old(self.server(), method)),
            Ok(refusal) => Err(NodeError(refusal.error)),
            Err(_) if status == StatusCode::NOT_FOUND => Err(too_old(self.server(), method)),
            Err(_) => {
                let words = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
                Err(garbled(self.server(), format!("{status}: {words}")))
            }
        }
    }

    async fn whole(
        &self,
        response: hyper::Response<Incoming>,
        noted: &Noted,
    ) -> Result<Bytes, NodeError> {
        let body = Limited::new(response.into_body(), ANSWER_MAX);
        match body.collect().await {
            Ok(whole) => Ok(whole.to_bytes()),
            Err(e) => Err(match e.downcast_ref::<hyper::Error>() {
                Some(e) => self.broken(noted, e).await,
                None => garbled(self.server(), format!("it is larger than {ANSWER_MAX} bytes")),
            }),
        }
    }
}

pub(super) fn post(method: &str, body: PeerBody) -> Request<PeerBody> {
    let mut request = Request::new(body);
    *request.method_mut() = Verb::POST;
    // Names of methods are words, so this is a path.
    *request.uri_mut() = format!("{PATH}/{method}").parse().unwrap_or_default();
    let json = header::HeaderValue::from_static("application/json");
    request.headers_mut().insert(header::CONTENT_TYPE, json);
    request
}

/// What travels has text keys and no numbers out of range, so that this cannot fail.
pub(super) fn encode(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

// The answering end.

/// Handles a method. It goes on to its end even if the asker hangs up.
pub(super) async fn handle<M: Method>(State(served): State<Served>, body: Bytes) -> Response {
    let method: M = match serde_json::from_slice(&body) {
        Ok(method) => method,
        Err(unread) => return malformed(&unread),
    };
    let work = async move {
        let _turn = served.turns.wait(method.turn()).await;
        method.run(&*served.node).await
    };
    match tokio::spawn(work).await {
        Ok(Ok(answer)) => Json(answer).into_response(),
        Ok(Err(error)) => refuse(error),
        Err(panic) => refuse(failed(&panic)),
    }
}

pub(super) fn malformed(error: &serde_json::Error) -> Response {
    let detail = format!("another server asked for something that cannot be read: {error}");
    let advice = "servers may be one release apart: bring both to the same release of Basin";
    refuse_with(StatusCode::BAD_REQUEST, "malformed", detail, advice)
}

/// A refusal, as the asking end reads it.
pub fn refuse(error: NodeError) -> Response {
    (StatusCode::UNPROCESSABLE_ENTITY, Json(Refusal { error: error.0 })).into_response()
}

pub(super) fn failed(panic: &tokio::task::JoinError) -> NodeError {
    let detail = format!("the server's daemon failed at this: {panic}");
    NodeError(problem("internal", detail, "report this as a defect of Basin; see its log"))
}

pub(super) fn refuse_with(
    status: StatusCode,
    code: &str,
    detail: String,
    advice: &str,
) -> Response {
    (status, Json(Refusal { error: problem(code, detail, advice) })).into_response()
}

//! The one thing that a server asks of a cluster that it does not belong to.

use super::call::encode;
use super::full;
use super::peer::Peer;
use crate::NodeError;
use crate::cluster::wire::{JOIN_PATH, JoinAnswer, JoinAsk};
use hyper::Request;
use hyper::header::{CONTENT_TYPE, HeaderValue};

/// Asks to be taken in. A refusal is the cluster's own words.
pub async fn ask_to_join(peer: &Peer, ask: &JoinAsk) -> Result<JoinAnswer, NodeError> {
    let mut request = Request::new(full(encode(ask)));
    *request.method_mut() = hyper::Method::POST;
    *request.uri_mut() = hyper::Uri::from_static(JOIN_PATH);
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let (response, noted) = peer.send_noting(request).await?;
    peer.answer("join", response, &noted).await
}

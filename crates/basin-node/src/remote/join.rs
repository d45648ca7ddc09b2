//! What a server asks of a cluster that it does not belong to, or does no more;
//! who leads, and which store is in use.

use super::call::encode;
use super::full;
use super::peer::Peer;
use crate::NodeError;
use crate::cluster::wire::{
    JOIN_PATH, JoinAnswer, JoinAsk, LEADS_PATH, REMOVED_PATH, RENEW_PATH, RenewAnswer, RenewAsk,
    STORE_PATH, StoreSeen,
};
use basin_model::HostId;
use hyper::Request;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Asks to be taken in. A refusal is the cluster's own words.
pub async fn ask_to_join(peer: &Peer, ask: &JoinAsk) -> Result<JoinAnswer, NodeError> {
    post(peer, JOIN_PATH, ask, "join").await
}

/// Asks for a new certificate, with the key of one that has expired.
pub async fn ask_to_renew(peer: &Peer, ask: &RenewAsk) -> Result<RenewAnswer, NodeError> {
    post(peer, RENEW_PATH, ask, "renew").await
}

async fn post<Q: Serialize, A: DeserializeOwned>(
    peer: &Peer,
    path: &'static str,
    ask: &Q,
    what: &str,
) -> Result<A, NodeError> {
    let mut request = Request::new(full(encode(ask)));
    *request.method_mut() = hyper::Method::POST;
    *request.uri_mut() = hyper::Uri::from_static(path);
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let (response, noted) = peer.send_noting(request).await?;
    peer.answer(what, response, &noted).await
}

/// Whether the cluster has shut that server out.
pub async fn ask_whether_removed(peer: &Peer, host: HostId) -> Result<bool, NodeError> {
    ask(peer, &format!("{REMOVED_PATH}/{host}"), "removed").await
}

/// Whether that server leads, as it knows itself.
pub async fn ask_whether_leads(peer: &Peer) -> Result<bool, NodeError> {
    ask(peer, LEADS_PATH, "leads").await
}

/// Which store that server uses.
pub async fn ask_for_store(peer: &Peer) -> Result<StoreSeen, NodeError> {
    ask(peer, STORE_PATH, "store").await
}

async fn ask<T: DeserializeOwned>(peer: &Peer, path: &str, what: &str) -> Result<T, NodeError> {
    let mut request = Request::new(full(""));
    // Constants and ids are words, so this is a path.
    *request.uri_mut() = path.parse().unwrap_or_default();
    let (response, noted) = peer.send_noting(request).await?;
    peer.answer(what, response, &noted).await
}

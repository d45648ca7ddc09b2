//! Passes a request on to the server whose business it is, and its answer back:
//! bodies and event streams as they come, WebSockets as they are. Who asks is found
//! out here; the other server takes this one's word for it, because this one shows
//! its certificate.

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use basin_model::HostId;
use basin_model::task::Problem;
use basin_node::NodeError;
use basin_node::pki::FromServer;
use basin_node::remote::{Peer, PeerBody};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use tracing::debug;

use super::ApiError;
use crate::app::auth::Actor;
use crate::app::problems;

/// Who asks, as JSON. Only servers may say it.
pub const ACTOR: HeaderName = HeaderName::from_static("basin-actor");
/// The server that passed the request on. Nobody passes it on again.
pub const FORWARDED: HeaderName = HeaderName::from_static("basin-forwarded");

/// Of one connection, not of the request; and the secret, which stays here.
const LEFT_BEHIND: [HeaderName; 10] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::HOST,
    header::EXPECT,
];

/// Sends the request to the other server in the actor's name, and gives its answer.
/// `local` is this server, which the other one is told. A request that was passed on
/// once is refused: two servers that each take the other for the leader would play
/// ball with it.
pub async fn forward(mut request: Request, to: &Peer, actor: &Actor, local: HostId) -> Response {
    if let Some(by) = forwarded_by(&request) {
        return ApiError(problems::forward_loop(by)).into_response();
    }
    let upgrade = upgrade_of(request.headers());
    let on_upgrade = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let request = match rewrite(request, actor, local, upgrade.as_ref()) {
        Ok(request) => request,
        Err(problem) => return ApiError(problem).into_response(),
    };
    let sent = match on_upgrade {
        Some(_) => to.send_upgrade(request).await,
        None => to.send(request).await,
    };
    let mut answer = match sent {
        Ok(answer) => answer,
        Err(NodeError(problem)) => return ApiError(problem).into_response(),
    };
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(ours) = on_upgrade
    {
        let theirs = hyper::upgrade::on(&mut answer);
        let server = to.server().to_owned();
        tokio::spawn(async move {
            if let Err(error) = splice(ours, theirs).await {
                debug!("a connection passed on to {server} ended: {error}");
            }
        });
        let (parts, _) = answer.into_parts();
        // These headers are the upgrade's own.
        return Response::from_parts(parts, Body::empty());
    }
    let (mut parts, body) = answer.into_parts();
    leave_behind(&mut parts.headers);
    parts.version = axum::http::Version::default();
    Response::from_parts(parts, Body::new(body))
}

/// The server that passed this request on.
pub fn forwarded_by(request: &Request) -> Option<HostId> {
    let FromServer(by) = request.extensions().get::<FromServer>()?;
    request.headers().contains_key(FORWARDED).then_some(*by)
}

/// The actor that a server names; None if it names none.
pub(super) fn named_actor(headers: &HeaderMap) -> Result<Option<Actor>, Problem> {
    let Some(value) = headers.get(ACTOR) else { return Ok(None) };
    let actor = serde_json::from_slice(value.as_bytes());
    actor.map(Some).map_err(|e| problems::malformed(format!("header {ACTOR}: {e}")))
}

/// The protocol that the connection is to change to.
fn upgrade_of(headers: &HeaderMap) -> Option<HeaderValue> {
    let connection = headers.get(header::CONNECTION)?.to_str().ok()?;
    let asked = connection.split(',').any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
    headers.get(header::UPGRADE).filter(|_| asked).cloned()
}

fn rewrite(
    request: Request,
    actor: &Actor,
    local: HostId,
    upgrade: Option<&HeaderValue>,
) -> Result<axum::http::Request<PeerBody>, Problem> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().cloned();
    let mut new = axum::http::Request::new(body.boxed_unsync());
    *new.method_mut() = parts.method;
    *new.uri_mut() = path.map(Uri::from).unwrap_or_default();
    let mut headers = parts.headers;
    leave_behind(&mut headers);
    headers.remove(header::AUTHORIZATION);
    if let Some(protocol) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol.clone());
    }
    let bad = |e: &dyn std::fmt::Display| problems::malformed(format!("header {ACTOR}: {e}"));
    let json = serde_json::to_vec(actor).map_err(|e| bad(&e))?;
    headers.insert(ACTOR, HeaderValue::from_bytes(&json).map_err(|e| bad(&e))?);
    let by = HeaderValue::from_str(&local.to_string()).map_err(|e| bad(&e))?;
    headers.insert(FORWARDED, by);
    *new.headers_mut() = headers;
    Ok(new)
}

fn leave_behind(headers: &mut HeaderMap) {
    // A client may name more headers that are of its connection only.
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in LEFT_BEHIND.iter().chain(&named) {
        headers.remove(name);
    }
}

async fn splice(
    ours: hyper::upgrade::OnUpgrade,
    theirs: hyper::upgrade::OnUpgrade,
) -> anyhow::Result<()> {
    let (ours, theirs) = tokio::try_join!(ours, theirs)?;
    let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
    tokio::io::copy_bidirectional(&mut ours, &mut theirs).await?;
    Ok(())
}

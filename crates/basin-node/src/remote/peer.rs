//! The other servers, as this one dials them. One HTTP/2 connection to each, made
//! when it is first needed, shared by all that ask, and made anew when it broke, the
//! server moved, or this server has another certificate.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use basin_model::HostId;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::http::uri::{Authority, Scheme};
use hyper::{Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::Mutex as AsyncMutex;

use super::body::PeerBody;
use super::connect::connect;
use super::io::{Noted, Noting};
use super::trouble::{Failure, unreachable};
use super::{CALL_WINDOW, CONNECTION_WINDOW};
use crate::NodeError;
use crate::pki::{Credentials, Fingerprint, PkiError, pinned_client};

/// A peer that is silent for this long is asked for a sign of life.
const PING_AFTER: Duration = Duration::from_secs(2);
/// And is dead if it gives none in this time.
const DEAD_AFTER: Duration = Duration::from_secs(3);

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAddress {
    pub host: HostId,
    /// For messages.
    pub name: String,
    pub address: SocketAddr,
}

/// All connections to other servers. Cheap to clone.
#[derive(Clone)]
pub struct Peers(Arc<Inner>);

struct Inner {
    credentials: Credentials,
    links: Mutex<HashMap<HostId, Arc<Link>>>,
}

impl Peers {
    pub fn new(credentials: Credentials) -> Peers {
        Peers(Arc::new(Inner { credentials, links: Mutex::default() }))
    }

    pub fn credentials(&self) -> &Credentials {
        &self.0.credentials
    }

    /// The server at that address; connects when it is asked something.
    pub fn peer(&self, at: &PeerAddress) -> Peer {
        let mut links = self.0.links.lock().unwrap_or_else(PoisonError::into_inner);
        let link = links.entry(at.host).or_default().clone();
        let trust = Trust::Cluster(self.0.credentials.clone(), at.host);
        let (authority, name) = (at.address.to_string(), format!("server '{}'", at.name));
        Peer { link, trust, server: format!("{name} ({authority})"), authority }
    }

    /// Closes the connection to a server once nothing runs over it.
    pub fn forget(&self, host: HostId) {
        self.0.links.lock().unwrap_or_else(PoisonError::into_inner).remove(&host);
    }
}

/// One other server. Cheap to clone.
#[derive(Clone)]
pub struct Peer {
    link: Arc<Link>,
    trust: Trust,
    authority: String,
    /// What messages call it.
    server: String,
}

#[derive(Clone)]
enum Trust {
    Cluster(Credentials, HostId),
    Pinned(Fingerprint),
}

#[derive(Default)]
struct Link(AsyncMutex<State>);

#[derive(Default)]
struct State {
    open: Option<Open>,
    /// Those who waited for an attempt share how it ended.
    failed: Option<(Instant, Failure)>,
}

#[derive(Clone)]
struct Open {
    sender: http2::SendRequest<PeerBody>,
    authority: String,
    version: u64,
    noted: Noted,
}

/// A request that got no answer.
pub(super) struct Lost {
    pub error: NodeError,
    /// The connection was from before, and may have ended meanwhile.
    pub stale: bool,
}

impl Peer {
    /// A server of a cluster that this one does not belong to, at `HOST:PORT`: any,
    /// if it is of the CA that a join token names. Shows no certificate.
    pub fn pinned(authority: &str, pin: Fingerprint) -> Peer {
        let server = format!("the server at {authority}");
        let (link, trust) = (Arc::default(), Trust::Pinned(pin));
        Peer { link, trust, server, authority: authority.to_owned() }
    }

    /// Its name and address, for messages.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Sends a request; answers when the answer begins. The URI's path is enough.
    pub async fn send(&self, request: Request<PeerBody>) -> Result<Response<Incoming>, NodeError> {
        self.send_noting(request).await.map(|(response, _)| response)
    }

    /// As [`Peer::send`], with where it is noted what the connection breaks on later.
    pub(super) async fn send_noting(
        &self,
        request: Request<PeerBody>,
    ) -> Result<(Response<Incoming>, Noted), NodeError> {
        self.try_send(request).await.map_err(|lost| lost.error)
    }

    /// As [`Peer::send_noting`]; tells also whether asking again may help.
    pub(super) async fn try_send(
        &self,
        request: Request<PeerBody>,
    ) -> Result<(Response<Incoming>, Noted), Lost> {
        let finally = |error| Lost { error, stale: false };
        let mut request = self.addressed(request).map_err(finally)?;
        loop {
            let opened = self.open().await;
            let (mut open, used) = opened.map_err(|e| finally(unreachable(&self.server, &e)))?;
            match open.sender.try_send_request(request).await {
                Ok(response) => return Ok((response, open.noted)),
                Err(mut failed) => {
                    self.close(&open).await;
                    match failed.take_message() {
                        // The connection had ended before. A new one tells more.
                        Some(unsent) if used => request = unsent,
                        _ => {
                            let stale = used && !failed.error().is_timeout();
                            let error = self.broken(&open.noted, failed.error()).await;
                            return Err(Lost { error, stale });
                        }
                    }
                }
            }
        }
    }

    /// What it means that an answer broke off.
    pub(super) async fn broken(&self, noted: &Noted, error: &hyper::Error) -> NodeError {
        let failure = noted.cause().await.unwrap_or_else(|| Failure::of_hyper(error));
        unreachable(&self.server, &failure)
    }

    /// Sends a request that takes its connection over, on an HTTP/1.1 connection of its own.
    pub async fn send_upgrade(
        &self,
        request: Request<PeerBody>,
    ) -> Result<Response<Incoming>, NodeError> {
        let failed = |failure: Failure| unreachable(&self.server, &failure);
        let mut request = self.addressed(request)?;
        // HTTP/1.1 has the authority in a header.
        let host = self.authority.parse().map_err(|_| failed(no_address(&self.authority)))?;
        request.headers_mut().insert(hyper::header::HOST, host);
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = path.map(Uri::from).unwrap_or_default();
        let config = self.config("http/1.1").map_err(|e| failed(unusable(&e)))?;
        let stream = connect(&self.authority, config).await.map_err(failed)?;
        let noted = Noted::default();
        let io = TokioIo::new(Noting::new(stream, noted.clone()));
        let shaken = http1::handshake(io).await;
        let (mut sender, connection) = match shaken {
            Ok(both) => both,
            Err(e) => return Err(self.broken(&noted, &e).await),
        };
        tokio::spawn(connection.with_upgrades());
        match sender.send_request(request).await {
            Ok(response) => Ok(response),
            Err(e) => Err(self.broken(&noted, &e).await),
        }
    }

    fn addressed(&self, mut request: Request<PeerBody>) -> Result<Request<PeerBody>, NodeError> {
        let bad = || unreachable(&self.server, &no_address(&self.authority));
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(Scheme::HTTPS);
        parts.authority = Some(Authority::try_from(self.authority.as_str()).map_err(|_| bad())?);
        *request.uri_mut() = Uri::from_parts(parts).map_err(|_| bad())?;
        Ok(request)
    }

    fn config(&self, protocol: &str) -> Result<Arc<rustls::ClientConfig>, PkiError> {
        match &self.trust {
            Trust::Cluster(credentials, host) => credentials.client_config(*host, &[protocol]),
            Trust::Pinned(pin) => pinned_client(*pin, &[protocol]),
        }
    }

    fn version(&self) -> u64 {
        match &self.trust {
            Trust::Cluster(credentials, _) => credentials.version(),
            Trust::Pinned(_) => 0,
        }
    }

    /// The connection there is (true), or a new one.
    async fn open(&self) -> Result<(Open, bool), Failure> {
        let asked = Instant::now();
        let mut state = self.link.0.lock().await;
        let version = self.version();
        if let Some(open) = &state.open
            && !open.sender.is_closed()
            && open.authority == self.authority
            && open.version == version
        {
            return Ok((open.clone(), true));
        }
        state.open = None;
        if let Some((at, failure)) = &state.failed
            && *at >= asked
        {
            return Err(failure.clone());
        }
        match self.connect(version).await {
            Ok(open) => {
                state.failed = None;
                Ok((state.open.insert(open).clone(), false))
            }
            Err(failure) => {
                state.failed = Some((Instant::now(), failure.clone()));
                Err(failure)
            }
        }
    }

    async fn close(&self, broken: &Open) {
        let mut state = self.link.0.lock().await;
        if state.open.as_ref().is_some_and(|open| Arc::ptr_eq(&open.noted, &broken.noted)) {
            state.open = None;
        }
    }

    async fn connect(&self, version: u64) -> Result<Open, Failure> {
        let config = self.config("h2").map_err(|e| unusable(&e))?;
        let stream = connect(&self.authority, config).await?;
        let noted = Noted::default();
        let io = TokioIo::new(Noting::new(stream, noted.clone()));
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(DEAD_AFTER)
            .initial_stream_window_size(CALL_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(io)
            .await
            .map_err(|e| Failure::of_hyper(&e))?;
        let ended = noted.clone();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                // What the stream itself broke on was noted before.
                ended.set(Failure::of_hyper(&error));
            }
        });
        Ok(Open { sender, authority: self.authority.clone(), version, noted })
    }
}

fn no_address(authority: &str) -> Failure {
    Failure::Unreachable(format!("'{authority}' is no address"))
}

fn unusable(error: &PkiError) -> Failure {
    Failure::Unreachable(format!("this server's own certificate cannot be used: {error}"))
}

//! Serves HTTPS to people and to servers on one port. Requests of a server carry
//! [`FromServer`]; nothing that a client sends can set it.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use basin_model::HostId;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use tracing::{debug, warn};

use super::connect::notice_cut;
use super::trouble::Failure;
use super::{CALL_WINDOW, CONNECTION_WINDOW};
use crate::pki::{Credentials, FromServer, facts};

const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// How long a client that was refused has to read why.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// A server that is removed from the cluster loses its connections within this time.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Clients that hang up without a word are noticed in twice this time.
const PING_AFTER: Duration = Duration::from_secs(10);
/// Consoles and event streams of many people may be forwarded over one connection.
const STREAMS: u32 = 10_000;

/// What an HTTPS port shows to those who connect.
#[derive(Clone)]
pub enum Tls {
    /// The same certificate always, and nobody is taken for a server.
    Fixed(Arc<ServerConfig>),
    /// The cluster's, as it is when they connect.
    Cluster(Credentials),
}

impl Tls {
    /// One certificate, as PEM, for a server that belongs to no cluster.
    pub fn fixed(chain_pem: &str, key_pem: &str) -> Result<Tls, String> {
        crate::pki::fixed_server(chain_pem, key_pem).map(Tls::Fixed).map_err(|e| e.to_string())
    }

    fn config(&self) -> Arc<ServerConfig> {
        match self {
            Tls::Fixed(config) => config.clone(),
            Tls::Cluster(credentials) => credentials.server_config(),
        }
    }

    /// The server at the other end; None for people. The handshake has checked it.
    fn peer(&self, stream: &TlsStream<TcpStream>) -> Result<Option<HostId>, String> {
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        match (self, chain.first()) {
            (Tls::Cluster(_), Some(own)) => facts(own).map(|f| f.host).map_err(|e| e.to_string()),
            _ => Ok(None),
        }
    }

    fn admits(&self, host: HostId) -> bool {
        matches!(self, Tls::Cluster(credentials) if credentials.admits(host))
    }
}

/// Serves until the token is cancelled; what is open then has `grace` to end.
pub async fn serve(
    listener: TcpListener,
    tls: Tls,
    router: Router,
    stop: CancellationToken,
    grace: Duration,
) {
    let (tracker, kill) = (TaskTracker::new(), CancellationToken::new());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((tcp, from)) => {
                let connection =
                    Connection { tls: tls.clone(), router: router.clone(), stop: stop.clone() };
                let kill = kill.clone();
                tracker.spawn(async move {
                    let work = connection.run(tcp);
                    let outcome = tokio::select! {
                        outcome = work => outcome,
                        () = kill.cancelled() => return,
                    };
                    if let Err(why) = outcome {
                        debug!(%from, "a connection ended: {why}");
                    }
                });
            }
            Err(e) => {
                // Out of descriptors, most likely: others may close some.
                warn!("cannot accept a connection: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    tracker.close();
    if tokio::time::timeout(grace, tracker.wait()).await.is_err() {
        kill.cancel();
        tracker.wait().await;
    }
}

/// One client.
struct Connection {
    tls: Tls,
    router: Router,
    stop: CancellationToken,
}

impl Connection {
    async fn run(self, tcp: TcpStream) -> Result<(), String> {
        let _ = tcp.set_nodelay(true);
        let Some(stream) = self.handshake(tcp).await? else { return Ok(()) };
        let peer = self.tls.peer(&stream)?;
        let (tls, router) = (self.tls.clone(), self.router);
        let service = service_fn(move |request: Request<Incoming>| {
            answer(request, peer, tls.clone(), router.clone())
        });
        let mut builder = Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new());
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PING_AFTER)
            .max_concurrent_streams(STREAMS);
        if peer.is_some() {
            let _ = notice_cut(stream.get_ref().0);
            // People's connections keep a bound: whoever they are could fill the memory.
            builder
                .http2()
                .initial_stream_window_size(CALL_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW);
        }
        let io = TokioIo::new(stream);
        let mut connection = pin!(builder.serve_connection_with_upgrades(io, service));
        let mut stopping = false;
        loop {
            tokio::select! {
                ended = connection.as_mut() => return ended.map_err(|e| e.to_string()),
                () = self.stop.cancelled(), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = removed(&self.tls, peer) => {
                    return Err("the server was removed from the cluster".to_owned());
                }
            }
        }
    }

    /// None when the daemon stops meanwhile.
    async fn handshake(&self, tcp: TcpStream) -> Result<Option<TlsStream<TcpStream>>, String> {
        let accept = TlsAcceptor::from(self.tls.config()).accept(tcp).into_fallible();
        let accepted = tokio::select! {
            accepted = tokio::time::timeout(HANDSHAKE_WITHIN, accept) => accepted,
            () = self.stop.cancelled() => return Ok(None),
        };
        match accepted {
            Ok(Ok(stream)) => Ok(Some(stream)),
            Ok(Err((error, tcp))) => {
                let why = match Failure::of_io(&error) {
                    Failure::Untrusted(spoken) => {
                        let from = tcp.peer_addr().map(|a| a.to_string()).unwrap_or_default();
                        warn!("{from} is refused as a server of this cluster: {spoken}");
                        spoken.to_string()
                    }
                    Failure::Unreachable(why) => why,
                };
                let _ = tokio::time::timeout(LAST_WORDS, say_good_bye(tcp)).await;
                Err(why)
            }
            Err(_) => Err("no TLS handshake".to_owned()),
        }
    }
}

/// Closed with unread bytes in it, the connection would be reset, and the alert that
/// says why be lost.
async fn say_good_bye(mut tcp: TcpStream) {
    let mut sink = [0; 1024];
    if tcp.shutdown().await.is_ok() {
        while matches!(tcp.read(&mut sink).await, Ok(1..)) {}
    }
}

/// Returns when the peer no longer belongs to the cluster.
async fn removed(tls: &Tls, peer: Option<HostId>) {
    let Some(peer) = peer else { return std::future::pending().await };
    loop {
        tokio::time::sleep(ASK_AGAIN).await;
        if !tls.admits(peer) {
            return;
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    peer: Option<HostId>,
    tls: Tls,
    router: Router,
) -> Result<Response, Infallible> {
    let mut request = request.map(Body::new);
    if let Some(host) = peer {
        // Between one look and the next it may have been removed.
        if !tls.admits(host) {
            return Ok((StatusCode::FORBIDDEN, "removed from the cluster").into_response());
        }
        request.extensions_mut().insert(FromServer(host));
    }
    router.oneshot(request).await
}

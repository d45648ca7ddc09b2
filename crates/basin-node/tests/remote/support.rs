use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::Extension;
use axum::routing::get;
use basin_model::HostId;
use basin_node::pki::{Admit, ClusterCa, Credentials, FromServer, Material, Subject, request};
use basin_node::remote::{Peer, PeerAddress, Peers, RemoteNode, Tls, full, router, serve};
use basin_node::{NodeApi, NodeError};
use http_body_util::BodyExt;
use hyper::Request;
use jiff::Timestamp;
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Long enough for anything; nothing is expected to take it.
pub const AT_MOST: Duration = Duration::from_secs(120);

/// A cluster: its CA, and who was removed from it.
pub struct Cluster {
    pub ca: ClusterCa,
    pub removed: Arc<Mutex<BTreeSet<HostId>>>,
}

impl Cluster {
    pub fn new() -> Cluster {
        let ca = ClusterCa::create("test", Timestamp::now()).unwrap();
        Cluster { ca, removed: Arc::default() }
    }

    pub fn remove(&self, host: HostId) {
        self.removed.lock().unwrap().insert(host);
    }

    pub fn admit(&self) -> Admit {
        let removed = self.removed.clone();
        Arc::new(move |host| !removed.lock().unwrap().contains(&host))
    }

    pub fn material(&self, subject: &Subject) -> Material {
        material(&self.ca, subject, &self.ca.certificate_pem())
    }

    pub fn credentials(&self, name: &str) -> Credentials {
        Credentials::new(self.material(&subject(name)), self.admit()).unwrap()
    }
}

pub fn subject(name: &str) -> Subject {
    let host = HostId::from_uuid(Uuid::now_v7());
    Subject { host, name: name.parse().unwrap(), addresses: vec!["127.0.0.1".parse().unwrap()] }
}

pub fn material(ca: &ClusterCa, subject: &Subject, bundle_pem: &str) -> Material {
    let (key, csr) = request(subject).unwrap();
    let chain = ca.sign(&csr, subject, Timestamp::now()).unwrap();
    Material::parse(&chain, &key, bundle_pem).unwrap()
}

/// A clock that is off.
#[derive(Debug)]
pub struct Clock {
    pub days_ahead: i64,
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let now = Timestamp::now().as_second() + self.days_ahead * 24 * 3600;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(now.try_into().unwrap())))
    }
}

/// A server that listens.
pub struct Server {
    pub host: HostId,
    pub address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Server {
    pub async fn start(credentials: Credentials, node: Arc<dyn NodeApi>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Server::on(listener, credentials, node)
    }

    pub fn on(listener: TcpListener, credentials: Credentials, node: Arc<dyn NodeApi>) -> Server {
        let host = credentials.host();
        Server::with(listener, host, Tls::Cluster(credentials), router(node).merge(who()))
    }

    pub fn with(listener: TcpListener, host: HostId, tls: Tls, router: Router) -> Server {
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(listener, tls, router, stop.clone(), Duration::ZERO));
        Server { host, address, stop, task }
    }

    pub fn at(&self) -> PeerAddress {
        PeerAddress { host: self.host, name: "srv2".to_owned(), address: self.address }
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

/// Says whom a request is from.
fn who() -> Router {
    let who = |from: Option<Extension<FromServer>>| async move {
        from.map_or_else(|| "a person".to_owned(), |Extension(FromServer(host))| host.to_string())
    };
    Router::new().route("/who", get(who))
}

/// Asks a server whom it takes the asker for.
pub async fn ask_who(peer: &Peer) -> Result<String, NodeError> {
    let request = Request::builder().uri("/who").body(full("")).unwrap();
    let answer = within(peer.send(request)).await?;
    let bytes = within(answer.into_body().collect()).await.unwrap().to_bytes();
    Ok(String::from_utf8(bytes.to_vec()).unwrap())
}

pub fn node(peers: &Peers, server: &Server) -> RemoteNode {
    RemoteNode::new(peers.peer(&server.at()))
}

pub async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(AT_MOST, work).await.expect("it ends")
}

/// Waits until something is so.
pub async fn until(mut so: impl FnMut() -> bool) {
    within(async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// A link to a server that can go bad.
pub struct Link {
    pub address: SocketAddr,
    state: watch::Sender<State>,
    task: JoinHandle<()>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Up,
    /// Nothing passes, and nobody is told.
    Frozen,
    /// All connections end.
    Cut,
}

impl Link {
    pub async fn to(server: SocketAddr) -> Link {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (state, seen) = watch::channel(State::Up);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, server, seen.clone()));
            }
        });
        Link { address, state, task }
    }

    pub fn at(&self, server: &Server) -> PeerAddress {
        PeerAddress { address: self.address, ..server.at() }
    }

    pub fn freeze(&self) {
        self.state.send_replace(State::Frozen);
    }

    pub fn mend(&self) {
        self.state.send_replace(State::Up);
    }

    pub fn cut(&self) {
        self.state.send_replace(State::Cut);
        self.state.send_replace(State::Up);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(mut client: TcpStream, server: SocketAddr, seen: watch::Receiver<State>) {
    let mut seen = seen;
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    let mut frozen = *seen.borrow_and_update() == State::Frozen;
    loop {
        if frozen {
            // Held open, and not read.
            let Ok(()) = seen.changed().await else { return };
        } else {
            tokio::select! {
                _ = copy_bidirectional(&mut client, &mut server) => return,
                changed = seen.changed() => if changed.is_err() { return },
            }
        }
        frozen = match *seen.borrow_and_update() {
            State::Frozen => true,
            // A frozen link was up to here; any other change is a cut.
            State::Up if frozen => false,
            State::Up | State::Cut => return,
        };
    }
}

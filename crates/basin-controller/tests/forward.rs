//! A server passes requests on to another one: over real TLS, with streams and consoles.

mod common;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use basin_controller::app::auth::{Action, Actor, Authorizer};
use basin_controller::http::forward::{ACTOR, FORWARDED, forward};
use basin_model::{HostId, TokenId};
use basin_node::pki::{ClusterCa, Credentials, Material, Subject, request};
use basin_node::remote::{Peer, PeerAddress, Peers, Tls, full, serve};
use common::{DataCentre, vm};
use futures::{SinkExt, StreamExt};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const AT_MOST: Duration = Duration::from_secs(120);

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(AT_MOST, work).await.expect("it ends")
}

/// Lets everybody do everything, and notes who they were.
#[derive(Clone, Default)]
struct Noting(Arc<Mutex<Vec<Actor>>>);

impl Authorizer for Noting {
    fn allows(&self, actor: &Actor, _: Action) -> bool {
        self.0.lock().unwrap().push(actor.clone());
        true
    }
}

fn credentials(ca: &ClusterCa, name: &str) -> Credentials {
    let host = HostId::from_uuid(Uuid::now_v7());
    let addresses = vec!["127.0.0.1".parse().unwrap()];
    let subject = Subject { host, name: name.parse().unwrap(), addresses };
    let (key, csr) = request(&subject).unwrap();
    let chain = ca.sign(&csr, &subject, Timestamp::now()).unwrap();
    let material = Material::parse(&chain, &key, &ca.certificate_pem()).unwrap();
    Credentials::new(material, Arc::new(|_| true)).unwrap()
}

fn alice() -> Actor {
    Actor::Token { id: TokenId::from_uuid(Uuid::nil()), name: "alice-ü".to_owned() }
}

struct Listening {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

async fn listen(credentials: &Credentials, router: Router) -> Listening {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, tls) = (CancellationToken::new(), Tls::Cluster(credentials.clone()));
    let task = tokio::spawn(serve(listener, tls, router, stop.clone(), Duration::ZERO));
    Listening { address, stop, task }
}

impl Listening {
    async fn end(self) {
        self.stop.cancel();
        within(self.task).await.unwrap();
    }
}

/// A router that passes everything on, as a follower does, in Alice's name.
fn follower(own: &Credentials, to: Peer) -> Router {
    let local = own.host();
    Router::new().fallback(move |request: Request| {
        let to = to.clone();
        async move { forward(request, &to, &alice(), local).await }
    })
}

/// A leader with everything, a follower in front of it, and a person.
struct Two {
    centre: DataCentre,
    actors: Noting,
    ca: ClusterCa,
    follower: Credentials,
    leader: HostId,
    leader_at: Listening,
    follower_at: Listening,
    person: Peer,
}

async fn two() -> Two {
    let ca = ClusterCa::create("test", Timestamp::now()).unwrap();
    let actors = Noting::default();
    let centre = DataCentre::with(Arc::new(actors.clone())).await;
    let (leader, own) = (credentials(&ca, "leader"), credentials(&ca, "follower"));
    let leader_at = listen(&leader, centre.router()).await;
    let at = PeerAddress { host: leader.host(), name: "leader".into(), address: leader_at.address };
    let to = Peers::new(own.clone()).peer(&at);
    let follower_at = listen(&own, follower(&own, to)).await;
    let person = Peer::pinned(&follower_at.address.to_string(), ca.fingerprint());
    Two { centre, actors, ca, follower: own, leader: leader.host(), leader_at, follower_at, person }
}

impl Two {
    async fn end(self) {
        self.follower_at.end().await;
        self.leader_at.end().await;
        self.centre.close().await;
    }

    fn last_actor(&self) -> Option<Actor> {
        self.actors.0.lock().unwrap().last().cloned()
    }
}

fn ask(
    method: &str,
    path: &str,
    body: Option<Value>,
) -> hyper::Request<basin_node::remote::PeerBody> {
    let body = body.map_or_else(String::new, |b| b.to_string());
    let request = hyper::Request::builder().method(method).uri(path);
    request.header("content-type", "application/json").body(full(body)).unwrap()
}

async fn read(answer: hyper::Response<Incoming>) -> (StatusCode, Value) {
    let status = answer.status();
    let bytes = within(answer.into_body().collect()).await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_answered_by_the_other_server_in_the_actors_name() {
    let two = two().await;
    let mut request = ask("GET", "/v1/version", None);
    request.headers_mut().insert("authorization", "Bearer secret".parse().unwrap());
    let (status, body) = read(within(two.person.send(request)).await.unwrap()).await;
    assert_eq!((status, &body["host"]), (StatusCode::OK, &json!("srv1")));
    assert_eq!(two.last_actor(), Some(alice()));

    let request = ask("POST", "/v1/vms", Some(vm("web-1")));
    let (status, task) = read(within(two.person.send(request)).await.unwrap()).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{task}");
    let wait = format!("/v1/tasks/{}?wait=60", task["id"].as_str().unwrap());
    let (_, task) = read(within(two.person.send(ask("GET", &wait, None))).await.unwrap()).await;
    assert_eq!(task["state"], "done", "{task}");

    // What the other one refuses comes back with its status, headers and words.
    let answer = within(two.person.send(ask("GET", "/v1/vms/none", None))).await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let (status, body) = read(answer).await;
    assert_eq!((status, &body["code"]), (StatusCode::NOT_FOUND, &json!("not-found")));
    let answer = within(two.person.send(ask("GET", "/v1/vms/web-1", None))).await.unwrap();
    assert!(answer.headers().contains_key("etag"));
    two.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_stream_and_limits_hold_at_the_other_end() {
    let two = two().await;
    let big = hyper::Request::post("/v1/uploads").body(full(vec![7_u8; 16 << 20])).unwrap();
    let (status, upload) = read(within(two.person.send(big)).await.unwrap()).await;
    assert_eq!((status, &upload["size_bytes"]), (StatusCode::OK, &json!(16 << 20)));
    let mut request = vm("x");
    request["description"] = json!("y".repeat(3 << 20));
    let answer = within(two.person.send(ask("POST", "/v1/vms", Some(request)))).await.unwrap();
    let (status, body) = read(answer).await;
    assert_eq!((status, &body["code"]), (StatusCode::PAYLOAD_TOO_LARGE, &json!("too-large")));
    two.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_as_they_happen() {
    let two = two().await;
    let answer = within(two.person.send(ask("GET", "/v1/events?kind=network", None))).await;
    let mut body = answer.unwrap().into_body();
    let network = json!({"name": "lab", "subnet": "10.99.0.0/24"});
    let made = within(two.person.send(ask("POST", "/v1/networks", Some(network)))).await.unwrap();
    assert_eq!(made.status(), StatusCode::CREATED);
    let mut seen = String::new();
    while !seen.contains("\"lab\"") {
        let frame = within(body.frame()).await.expect("it goes on").unwrap();
        seen += &String::from_utf8_lossy(&frame.into_data().unwrap());
    }
    assert!(seen.contains("event: network") || seen.contains("event:network"), "{seen}");
    drop(body);
    two.end().await;
}

async fn console(peer: &Peer, vm: &str) -> WebSocketStream<TokioIo<hyper::upgrade::Upgraded>> {
    let mut request = ask("GET", &format!("/v1/vms/{vm}/console"), None);
    let headers = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    for (name, value) in headers {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let answer = within(peer.send_upgrade(request)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(answer.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    let upgraded = hyper::upgrade::on(answer).await.unwrap();
    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_console_goes_through_both_servers() {
    let two = two().await;
    let mut request = vm("web-1");
    request["start"] = json!(true);
    two.centre.must("POST", "/v1/vms", Some(request)).await;
    let mut socket = console(&two.person, "web-1").await;
    assert_eq!(two.last_actor(), Some(alice()));
    let id = two.centre.machines.running()[0];
    let guest = two.centre.machines.guest(id).unwrap();
    socket.send(Message::Binary("uname\r".into())).await.unwrap();
    assert_eq!(within(guest.hear(6)).await.unwrap(), b"uname\r");
    guest.say(b"Linux").await.unwrap();
    let mut said = Vec::new();
    while !said.ends_with(b"Linux") {
        match within(socket.next()).await.unwrap().unwrap() {
            Message::Binary(bytes) => said.extend(bytes),
            other => panic!("{other:?}"),
        }
    }
    // The end of the VM closes it in the protocol's own way.
    two.centre.must("POST", "/v1/vms/web-1/power-off", None).await;
    loop {
        match within(socket.next()).await {
            Some(Ok(Message::Close(_))) => break,
            Some(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    two.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_console_that_is_refused_says_why() {
    let two = two().await;
    let mut request = ask("GET", "/v1/vms/none/console", None);
    request.headers_mut().insert("connection", "Upgrade".parse().unwrap());
    request.headers_mut().insert("upgrade", "websocket".parse().unwrap());
    let (status, body) = read(within(two.person.send_upgrade(request)).await.unwrap()).await;
    assert_eq!((status, &body["code"]), (StatusCode::NOT_FOUND, &json!("not-found")));
    two.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_but_a_server_names_an_actor() {
    let two = two().await;
    let leader = two.leader_at.address.to_string();
    let person = Peer::pinned(&leader, two.ca.fingerprint());
    for name in [ACTOR, FORWARDED] {
        let mut request = ask("GET", "/v1/vms", None);
        request.headers_mut().insert(&name, "{\"is\":\"root\"}".parse().unwrap());
        let (status, body) = read(within(person.send(request)).await.unwrap()).await;
        assert_eq!((status, &body["code"]), (StatusCode::FORBIDDEN, &json!("forbidden")), "{name}");
    }
    // Through the follower as well: what a person says is replaced.
    let mut request = ask("GET", "/v1/vms", None);
    request.headers_mut().insert(ACTOR, "{\"is\":\"root\"}".parse().unwrap());
    assert_eq!(within(two.person.send(request)).await.unwrap().status(), StatusCode::OK);
    assert_eq!(two.last_actor(), Some(alice()));
    assert!(!two.actors.0.lock().unwrap().contains(&Actor::Root));
    two.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_by_itself_is_nobody() {
    let two = two().await;
    let address = two.leader_at.address;
    let host = two.centre.app.nodes().local();
    // Its id is not the certificate's, so the connection is refused before all else.
    let wrong = PeerAddress { host, name: "leader".into(), address };
    let peers = Peers::new(two.follower.clone());
    let problem = within(peers.peer(&wrong).send(ask("GET", "/v1/vms", None))).await.unwrap_err();
    assert_eq!(problem.0.code, "host-untrusted");
    let at = PeerAddress { host: two.leader, name: "leader".into(), address };
    let peer = peers.peer(&at);
    let answer = within(peer.send(ask("GET", "/v1/vms", None))).await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    let mut request = ask("GET", "/v1/vms", None);
    request.headers_mut().insert(ACTOR, "nonsense".parse().unwrap());
    let (status, body) = read(within(peer.send(request)).await.unwrap()).await;
    assert_eq!((status, &body["code"]), (StatusCode::BAD_REQUEST, &json!("malformed")));
    two.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_do_not_play_ball_with_a_request() {
    let ca = ClusterCa::create("test", Timestamp::now()).unwrap();
    let (one, other) = (credentials(&ca, "one"), credentials(&ca, "other"));
    let one_listens = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = one_listens.local_addr().unwrap();
    let at = PeerAddress { host: one.host(), name: "one".into(), address };
    let back = Peers::new(other.clone()).peer(&at);
    let other_at = listen(&other, follower(&other, back)).await;
    let at = PeerAddress { host: other.host(), name: "other".into(), address: other_at.address };
    let stop = CancellationToken::new();
    let router = follower(&one, Peers::new(one.clone()).peer(&at));
    let tls = Tls::Cluster(one.clone());
    let task = tokio::spawn(serve(one_listens, tls, router, stop.clone(), Duration::ZERO));
    let person = Peer::pinned(&address.to_string(), ca.fingerprint());
    let (status, body) = read(within(person.send(ask("GET", "/x", None))).await.unwrap()).await;
    assert_eq!((status, &body["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("forward-loop")));
    assert!(body["detail"].as_str().unwrap().contains(&one.host().to_string()), "{body}");
    other_at.end().await;
    stop.cancel();
    within(task).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_gone_is_named_and_one_that_dies_breaks_the_stream_off() {
    let two = two().await;
    let answer = within(two.person.send(ask("GET", "/v1/events", None))).await.unwrap();
    let mut body = answer.into_body();
    two.leader_at.end().await;
    let end = within(async {
        loop {
            match body.frame().await {
                Some(Ok(_)) => {}
                end => return end,
            }
        }
    })
    .await;
    assert!(matches!(end, Some(Err(_))), "broken off, not ended");
    let (status, body) =
        read(within(two.person.send(ask("GET", "/v1/vms", None))).await.unwrap()).await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::SERVICE_UNAVAILABLE, &json!("host-unreachable"))
    );
    assert!(body["detail"].as_str().unwrap().contains("server 'leader'"), "{body}");
    two.follower_at.end().await;
    two.centre.close().await;
}

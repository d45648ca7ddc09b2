//! Event streams that break, and consoles, over a socket and over TLS.

mod support;

use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Json, Router};
use basin_api::client::{Client, ClientError};
use basin_api::event::Change;
use serde_json::json;
use support::Server;

/// What each connection to the stream asked for.
type Asked = Arc<Mutex<Vec<(Option<String>, Option<String>)>>>;

fn event(vm: &str, revision: u64) -> String {
    let it = json!({"change": "updated", "kind": "vm", "id": vm, "revision": revision});
    format!("event: vm\nid: {revision}\ndata: {it}\n\n")
}

/// A stream that is cut after two events, each time; the second cut is within an event.
async fn cut_stream(
    State(asked): State<Asked>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let last = headers.get("last-event-id").map(|v| v.to_str().expect("text").to_owned());
    let connections = {
        let mut asked = asked.lock().expect("no panic");
        asked.push((query, last));
        asked.len() as u64
    };
    let first = connections * 2 + 9;
    let half = &event("v1", 99)[..20];
    // One transaction changes two VMs, and the first connection breaks between the two.
    let text = match connections {
        1 => format!(": hello\n\n{}{}{half}", event("v1", 11), event("v1", 12)),
        2 => format!("{}{}{half}", event("v1", 12), event("v2", 12)),
        _ => format!("{}{}{half}", event("v1", first), event("v1", first + 1)),
    };
    let body = futures::stream::iter([Ok::<_, Infallible>(text)]);
    ([("content-type", "text/event-stream")], Body::from_stream(body)).into_response()
}

#[tokio::test]
async fn a_stream_goes_on_where_it_broke() {
    let asked = Asked::default();
    let router = Router::new()
        .route("/v1/hosts", get(|| async { Json(json!({"items": [], "revision": 10})) }))
        .route("/v1/events", get(cut_stream))
        .with_state(asked.clone());
    let server = Server::start(router);
    let mut events = server.client().events(&["vm", "task"], None).await.expect("a stream");
    let mut seen = Vec::new();
    for _ in 0..6 {
        let event = events.next().await.expect("an event");
        seen.push((event.id, event.revision));
    }
    let expect = [("v1", 11), ("v1", 12), ("v2", 12), ("v1", 15), ("v1", 16), ("v1", 17)];
    assert_eq!(seen, expect.map(|(id, revision)| (id.to_owned(), revision)));
    let query = Some("kind=vm&kind=task&after=10".to_owned());
    let expect = [
        (query.clone(), None),
        (query.clone(), Some("11".to_owned())),
        (query, Some("11".to_owned())),
    ];
    assert_eq!(asked.lock().expect("no panic")[..3], expect);
}

#[tokio::test]
async fn a_stream_ends_when_the_server_stays_away() {
    let asked = Asked::default();
    let router = Router::new().route("/v1/events", get(cut_stream)).with_state(asked);
    let mut server = Server::start(router);
    let client = server.client().with_patience(Duration::from_millis(200));
    let mut events = client.events(&[], Some(3)).await.expect("a stream");
    events.next().await.expect("an event");
    server.stop().await;
    let error = loop {
        if let Err(error) = events.next().await {
            break error;
        }
    };
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_history_that_is_gone_is_told() {
    let text = "event: resync\nid: 41\ndata: {}\n\n";
    let router = Router::new().route("/v1/events", get(move || async move { text }));
    let server = Server::start(router);
    let mut events = server.client().events(&[], Some(3)).await.expect("a stream");
    let event = events.next().await.expect("an event");
    assert_eq!((event.change, event.revision), (Change::Resync, 41));
}

/// Sends history, then gives back what it gets, until it gets a `q`.
async fn echo(upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(async |mut socket| {
        socket.send(Message::Binary("history".into())).await.expect("sent");
        while let Some(Ok(message)) = socket.recv().await {
            match message {
                Message::Binary(bytes) if &bytes[..] == b"q" => return,
                Message::Binary(bytes) => {
                    socket.send(Message::Binary(bytes)).await.expect("sent");
                }
                _ => {}
            }
        }
    })
}

fn consoles() -> Router {
    let refused = || async {
        let problem = json!({
            "type": "", "title": "", "status": 409, "code": "not-running", "detail": "it is off",
        });
        (StatusCode::CONFLICT, Json(problem))
    };
    Router::new()
        .route("/v1/vms/web/console", any(echo))
        .route("/v1/vms/off/console", get(refused))
        .route("/v1/vms/odd/console", get(|| async { "hello" }))
}

async fn use_console(client: &Client) {
    let mut console = client.console("web").await.expect("a console");
    assert_eq!(console.output.next().await.expect("open").expect("history"), "history");
    console.input.send("ls\n".into()).await.expect("sent");
    assert_eq!(console.output.next().await.expect("open").expect("echo"), "ls\n");
    console.input.send("q".into()).await.expect("sent");
    // The server leaves without a good-bye, or with one: the end either way.
    assert!(matches!(console.output.next().await, Ok(None) | Err(_)));
}

#[tokio::test]
async fn a_console_over_the_socket() {
    let server = Server::start(consoles());
    let client = server.client();
    use_console(&client).await;
    let error = client.console("off").await.expect_err("refused");
    assert_eq!(error.code(), Some("not-running"));
    let error = client.console("odd").await.expect_err("no WebSocket");
    assert!(matches!(error, ClientError::Protocol { .. }), "{error:?}");
}

/// A server behind TLS: its URL, the PEM of its authority.
fn serve_tls(router: Router) -> (String, String) {
    let authority_key = rcgen::KeyPair::generate().expect("a key");
    let mut authority = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_pem = authority.self_signed(&authority_key).expect("a certificate").pem();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])
        .expect("parameters")
        .signed_by(&key, &issuer)
        .expect("a certificate");

    // The server side, too, takes the process's provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("non-blocking");
    let url = format!("https://{}", listener.local_addr().expect("an address"));
    let (certificate, key) = (certificate.pem().into_bytes(), key.serialize_pem().into_bytes());
    tokio::spawn(async move {
        let config = axum_server::tls_rustls::RustlsConfig::from_pem(certificate, key)
            .await
            .expect("a TLS configuration");
        axum_server::from_tcp_rustls(listener, config)
            .expect("a listener")
            .serve(router.into_make_service())
            .await
            .expect("it runs");
    });
    (url, authority_pem)
}

#[tokio::test]
async fn tls_with_a_token() {
    let version = |headers: HeaderMap| async move {
        assert_eq!(headers["authorization"], "Bearer secret");
        Json(json!({"version": "1", "api": "v1", "host": "a"}))
    };
    let (url, ca) = serve_tls(consoles().route("/v1/version", get(version)));
    let client = Client::remote(&url, Some("secret"), Some(ca.as_bytes())).expect("a client");
    assert_eq!(client.version().await.expect("trusted").host, "a");
    assert!(!client.is_local());
    use_console(&client).await;

    let stranger = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("one");
    let wary = Client::remote(&url, None, Some(stranger.cert.pem().as_bytes())).expect("a client");
    let error = wary.version().await.expect_err("not trusted");
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error:?}");
    assert!(error.advice().contains("--ca"), "{error}: {}", error.advice());
}

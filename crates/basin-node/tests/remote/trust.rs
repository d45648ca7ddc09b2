use std::sync::Arc;

use basin_node::pki::{Credentials, Fingerprint, Material, PkiError, Subject};
use basin_node::remote::{Peer, PeerAddress, Peers, Tls, full};
use hyper::{Request, StatusCode};
use jiff::Timestamp;
use tokio::net::TcpListener;

use super::fake::Fake;
use super::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn servers_know_each_other_and_people_are_let_in_without_a_certificate() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.credentials("one"), cluster.credentials("two"));
    let server = Server::start(two, Arc::new(Fake::default())).await;
    let peers = Peers::new(one.clone());
    assert_eq!(ask_who(&peers.peer(&server.at())).await.unwrap(), one.host().to_string());
    let person = Peer::pinned(&server.address.to_string(), cluster.ca.fingerprint());
    assert_eq!(ask_who(&person).await.unwrap(), "a person");
    server.stop().await;
}

/// Two servers that differ from good ones; what the dialling one says in the end.
async fn refused(dialler: Credentials, listener: Credentials, code: &str, words: &[&str]) {
    let server = Server::start(listener, Arc::new(Fake::default())).await;
    refused_by(dialler, &server, code, words).await;
    server.stop().await;
}

async fn refused_by(dialler: Credentials, server: &Server, code: &str, words: &[&str]) {
    let peers = Peers::new(dialler);
    let problem = ask_who(&peers.peer(&server.at())).await.unwrap_err().0;
    assert_eq!(problem.code, code, "{problem:?}");
    let address = server.address.to_string();
    for word in words.iter().copied().chain(["srv2", &address]) {
        assert!(problem.detail.contains(word), "'{word}' is not in: {}", problem.detail);
    }
    assert!(!problem.advice.is_empty());
}

fn ahead(cluster: &Cluster, name: &str, days_ahead: i64) -> Credentials {
    let clock = Arc::new(Clock { days_ahead });
    Credentials::with_clock(cluster.material(&subject(name)), cluster.admit(), clock).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_has_expired_by_the_dialling_clock() {
    let cluster = Cluster::new();
    let words = ["its certificate has expired", "the clock here says"];
    refused(ahead(&cluster, "a", 500), cluster.credentials("b"), "host-untrusted", &words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_not_good_yet_by_the_dialling_clock() {
    let cluster = Cluster::new();
    let words = ["its certificate is not good yet", "the clock here says"];
    refused(ahead(&cluster, "a", -3), cluster.credentials("b"), "host-untrusted", &words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_has_expired_or_is_not_good_yet_by_the_other_clock() {
    let cluster = Cluster::new();
    for days in [500, -3] {
        let words = ["refuses this server's certificate", "expired, or is not good yet"];
        let listener = ahead(&cluster, "b", days);
        refused(cluster.credentials("a"), listener, "host-untrusted", &words).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_than_the_one_that_was_dialled() {
    let cluster = Cluster::new();
    let server = Server::start(cluster.credentials("b"), Arc::new(Fake::default())).await;
    let other = subject("other").host;
    let peers = Peers::new(cluster.credentials("a"));
    let at = PeerAddress { host: other, ..server.at() };
    let problem = ask_who(&peers.peer(&at)).await.unwrap_err().0;
    let words = format!("is that of server {}, not of server {other}", server.host);
    assert!(problem.detail.contains(&words), "{problem:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_cluster() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let words = ["its certificate is of no certificate authority that this cluster trusts"];
    refused(ours.credentials("a"), theirs.credentials("b"), "host-untrusted", &words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dialler_of_another_cluster_that_pretends_to_trust_this_one() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let foreign = material(&theirs.ca, &subject("spy"), &ours.ca.certificate_pem());
    let dialler = Credentials::new(foreign, theirs.admit()).unwrap();
    let words = ["refuses this server's certificate", "no certificate authority that it trusts"];
    refused(dialler, ours.credentials("b"), "host-untrusted", &words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_belongs_to_no_cluster() {
    let cluster = Cluster::new();
    let pair = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let tls = Tls::fixed(&pair.cert.pem(), &pair.signing_key.serialize_pem()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Server::with(listener, subject("x").host, tls, axum::Router::new());
    refused_by(cluster.credentials("a"), &server, "host-untrusted", &["its certificate"]).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_speak_tls_is_no_server() {
    let cluster = Cluster::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut tcp, _) = listener.accept().await.unwrap();
        let _ = tcp.read(&mut [0; 512]).await;
        let _ = tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        let _ = tcp.read(&mut [0; 512]).await;
    });
    let peers = Peers::new(cluster.credentials("a"));
    let at = PeerAddress { host: subject("b").host, name: "srv2".into(), address };
    let problem = ask_who(&peers.peer(&at)).await.unwrap_err().0;
    assert_eq!(problem.code, "host-unreachable", "{problem:?}");
    assert!(problem.detail.contains("does not speak TLS"), "{problem:?}");
    drop(peers);
    within(task).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_server_is_refused_on_both_ends() {
    let cluster = Cluster::new();
    let (gone, stays) = (cluster.credentials("gone"), cluster.credentials("stays"));
    cluster.remove(gone.host());
    // It does not know of its removal itself.
    let unaware = Credentials::new(gone.material(), Arc::new(|_| true)).unwrap();
    let words = ["refuses this server's certificate: this server was removed"];
    refused(unaware.clone(), stays.clone(), "host-untrusted", &words).await;
    refused(stays, unaware, "host-untrusted", &["was removed from the cluster"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn removal_ends_connections_that_are_open() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.credentials("one"), cluster.credentials("two"));
    let unaware = Credentials::new(one.material(), Arc::new(|_| true)).unwrap();
    let node = Arc::new(Fake::default());
    let server = Server::start(two, node.clone()).await;
    let peers = Peers::new(unaware);
    let remote = super::support::node(&peers, &server);
    use basin_node::NodeApi;
    let vm = basin_model::VmId::from_uuid(uuid::Uuid::now_v7());
    let mut console = within(remote.console(vm)).await.unwrap();
    cluster.remove(one.host());
    while let Some(said) = within(console.output.recv()).await {
        assert!(String::from_utf8_lossy(&said).contains("broke off"));
    }
    let problem = ask_who(&peers.peer(&server.at())).await.unwrap_err().0;
    assert!(problem.detail.contains("was removed"), "{problem:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_trusts_the_ca_of_its_token_and_no_other() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    let server = Server::start(cluster.credentials("b"), Arc::new(Fake::default())).await;
    let address = server.address.to_string();
    let pinned = |pin| Peer::pinned(&address, pin);
    assert_eq!(ask_who(&pinned(cluster.ca.fingerprint())).await.unwrap(), "a person");
    for wrong in [other.ca.fingerprint(), Fingerprint::of(b"")] {
        let problem = ask_who(&pinned(wrong)).await.unwrap_err().0;
        assert_eq!(problem.code, "host-untrusted");
        assert!(problem.detail.contains("authority of the join token"), "{problem:?}");
    }
    server.stop().await;
}

/// Shows the CA that the joining server wants to see, with a certificate that is not of it.
#[tokio::test(flavor = "multi_thread")]
async fn showing_the_right_ca_is_not_enough_for_a_join() {
    let (cluster, thief) = (Cluster::new(), Cluster::new());
    let subject = subject("b");
    let (key, csr) = basin_node::pki::request(&subject).unwrap();
    let chain = thief.ca.sign(&csr, &subject, Timestamp::now()).unwrap();
    let chain = chain + &cluster.ca.certificate_pem();
    let material = Material::parse(&chain, &key, &thief.ca.certificate_pem()).unwrap();
    let credentials = Credentials::new(material, thief.admit()).unwrap();
    let server = Server::start(credentials, Arc::new(Fake::default())).await;
    let joining = Peer::pinned(&server.address.to_string(), cluster.ca.fingerprint());
    let problem = ask_who(&joining).await.unwrap_err().0;
    assert_eq!(problem.code, "host-untrusted", "{problem:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_answers_servers_only() {
    let cluster = Cluster::new();
    let node = Arc::new(Fake::default());
    let server = Server::start(cluster.credentials("b"), node.clone()).await;
    let person = Peer::pinned(&server.address.to_string(), cluster.ca.fingerprint());
    for path in ["usage", "delete_image", "console?vm=x", "nonsense"] {
        let request = Request::post(format!("/internal/v1/node/{path}"))
            .header("authorization", "Bearer anything")
            .body(full("{}"))
            .unwrap();
        let answer = within(person.send(request)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{path}");
    }
    assert!(node.calls.lock().unwrap().is_empty());
    server.stop().await;
}

#[test]
fn another_servers_certificate_is_not_taken_on() {
    let cluster = Cluster::new();
    let credentials = cluster.credentials("a");
    let other: Subject = subject("b");
    let error = credentials.replace(cluster.material(&other)).unwrap_err();
    assert!(matches!(error, PkiError::Unreadable { .. }), "{error}");
    assert_eq!(credentials.version(), 0);
}

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use basin_model::VmId;
use basin_node::NodeApi;
use basin_node::pki::{ClusterCa, Credentials, Subject};
use basin_node::remote::Peers;
use jiff::Timestamp;
use uuid::Uuid;

use super::fake::Fake;
use super::support::*;

/// A server with its subject, to sign for it again.
fn server_of(cluster: &Cluster, name: &str) -> (Subject, Credentials) {
    let subject = subject(name);
    let credentials = Credentials::new(cluster.material(&subject), cluster.admit()).unwrap();
    (subject, credentials)
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_change_under_load_and_nothing_is_lost() {
    let cluster = Cluster::new();
    let ((a, ours), (b, theirs)) = (server_of(&cluster, "a"), server_of(&cluster, "b"));
    let fake = Arc::new(Fake::default());
    let server = Server::start(theirs.clone(), fake.clone()).await;
    let peers = Peers::new(ours.clone());
    let vm = VmId::from_uuid(Uuid::now_v7());
    let mut console = within(node(&peers, &server).console(vm)).await.unwrap();

    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let load: Vec<_> = (0..8)
        .map(|_| {
            let (remote, stop, asked) = (node(&peers, &server), stop.clone(), asked.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    remote.usage().await.unwrap();
                    asked.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    for _ in 0..5 {
        let before = asked.load(Ordering::SeqCst);
        ours.replace(cluster.material(&a)).unwrap();
        theirs.replace(cluster.material(&b)).unwrap();
        until(|| asked.load(Ordering::SeqCst) > before + 20).await;
    }
    stop.store(true, Ordering::SeqCst);
    for one in load {
        within(one).await.unwrap();
    }
    // It was open all the time.
    console.input.send(b"still here".to_vec()).await.unwrap();
    assert_eq!(within(console.output.recv()).await.unwrap(), b"still here");
    drop(console);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ca_is_replaced_in_steps_and_the_old_one_is_worth_nothing_after() {
    let cluster = Cluster::new();
    let ((a, ours), (b, theirs)) = (server_of(&cluster, "a"), server_of(&cluster, "b"));
    let server = Server::start(theirs.clone(), Arc::new(Fake::default())).await;
    let peers = Peers::new(ours.clone());
    let peer = peers.peer(&server.at());
    let works = async || assert_eq!(ask_who(&peer).await.unwrap(), a.host.to_string());
    works().await;
    let old_of_a = ours.material();

    let new = ClusterCa::create("test", Timestamp::now()).unwrap();
    let both = cluster.ca.bundle().unwrap().with(&new.bundle().unwrap());
    // Trust both, one server after the other; then sign anew; then trust the new alone.
    for credentials in [&ours, &theirs] {
        credentials.replace(credentials.material().trusting(both.clone())).unwrap();
        works().await;
    }
    for (credentials, subject) in [(&theirs, &b), (&ours, &a)] {
        credentials.replace(material(&new, subject, &both.pem())).unwrap();
        works().await;
    }
    for credentials in [&ours, &theirs] {
        let only = both.without(cluster.ca.fingerprint()).unwrap();
        credentials.replace(credentials.material().trusting(only)).unwrap();
        works().await;
    }
    ours.replace(old_of_a.trusting(new.bundle().unwrap())).unwrap();
    let problem = ask_who(&peer).await.unwrap_err().0;
    assert!(problem.detail.contains("no certificate authority that it trusts"), "{problem:?}");
    server.stop().await;
}

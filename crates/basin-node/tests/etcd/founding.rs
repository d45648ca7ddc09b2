//! A single server's state enters etcd, whose member is the same after its directory
//! has got its final name.

use std::sync::Arc;
use std::time::Duration;

use basin_model::host::Host;
use basin_model::{HostId, Labels, Meta, keys};
use basin_node::cluster::follow::Follower;
use basin_node::cluster::found::{Found, move_in, prepare};
use basin_node::cluster::{ClusterDir, StoreConfig, attempt};
use basin_node::etcd::{Resident, Voters};
use basin_node::pki::Credentials;
use basin_store::records::{self, TxnBuilder};
use basin_store::{EtcdStore, MemStore, Store};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::world::{PATIENCE, kill_all, own_address, pid, pids_with, until};

/// Ends the member also after a failure.
struct Cleared<'a>(&'a ClusterDir);

impl Drop for Cleared<'_> {
    fn drop(&mut self) {
        kill_all(&mark(self.0));
    }
}

fn mark(dir: &ClusterDir) -> String {
    format!("--data-dir={}", dir.etcd().join("data").display())
}

async fn single(host: HostId) -> MemStore {
    let store = MemStore::new();
    let meta = Meta {
        name: "srv1".parse().unwrap(),
        description: String::new(),
        labels: Labels::default(),
        created_at: jiff::Timestamp::UNIX_EPOCH,
    };
    let host =
        Host { id: host, meta, address: None, api_port: None, drain: None, trunks: Vec::new() };
    TxnBuilder::new().create(keys::host(host.id), &host).commit(&store).await.unwrap();
    store
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_member_is_the_same_where_its_directory_ends_up() {
    let state = tempfile::tempdir().unwrap();
    let (next, dir) = (ClusterDir::next(state.path()), ClusterDir::current(state.path()));
    let (_one, _other) = (Cleared(&next), Cleared(&dir));
    let host = HostId::from_uuid(Uuid::now_v7());
    let found = Found {
        host,
        name: "srv1".parse().unwrap(),
        advertise: own_address().into(),
        api_port: 7443,
        external: None,
        certificate_life: None,
    };
    let single = single(host).await;
    prepare(&next, &found, Uuid::now_v7()).unwrap();

    // A daemon was killed in the midst of it: its member runs, with half of a copy.
    let config = next.load().unwrap().unwrap();
    let stop = CancellationToken::new();
    let stray = config.resident(host, &next, None, stop.clone()).unwrap();
    pid(&stray.begin("another".to_owned()).await.unwrap()).await;
    stop.cancel();

    let stop = CancellationToken::new();
    move_in(&next, host, &single, &stop).await.unwrap();
    assert_eq!(pids_with(&mark(&next)), []);
    let id = std::fs::read_to_string(next.etcd().join("member-id")).unwrap();
    attempt::enter(state.path()).unwrap();

    // The next daemon: the store answers from this very member.
    let config = dir.load().unwrap().unwrap();
    let material = dir.tls().load().unwrap().unwrap();
    let resident = config.resident(host, &dir, None, stop.clone()).unwrap();
    let member = resident.resume().await.expect("it has data");
    let store = Arc::new(EtcdStore::connect(&config.etcd_options(&material)).unwrap());
    let get = async || records::get::<Host>(&*store, &keys::host(host)).await.ok();
    let record = until("the store answers", get).await.expect("it has come along");
    assert_eq!(record.value.address, Some(found.advertise));

    let members = until("members are listed", async || store.members().await.ok()).await;
    let tended = resident.tend(&members).await.unwrap().expect("it is a member still");
    assert_eq!(pid(&tended).await, pid(&member).await);
    assert_eq!(std::fs::read_to_string(dir.etcd().join("member-id")).unwrap(), id);
    assert_eq!(id.trim(), format!("{:x}", members[0].id));
    follows(&dir, host, store.clone(), resident, &stop).await;
    stop.cancel();

    let stop = CancellationToken::new();
    config.resident(host, &dir, None, stop).unwrap().clear_all().await.unwrap();
    assert!(!dir.etcd().join("data").exists() && !dir.etcd().join("member-id").exists());
}

/// What the daemon does with the member from then on.
async fn follows(
    dir: &ClusterDir,
    host: HostId,
    store: Arc<EtcdStore>,
    resident: Resident,
    stop: &CancellationToken,
) {
    let mut config = dir.load().unwrap().unwrap();
    let own = config.own_endpoint();
    // As of long ago.
    config.store = StoreConfig::Own { endpoints: vec![own.clone(), "https://127.0.0.9:1".into()] };
    dir.store(&config).unwrap();
    let material = dir.tls().load().unwrap().unwrap();
    let credentials = Credentials::new(material, Arc::new(|_| true)).unwrap();
    let (voters, mut seen) = watch::channel(Voters::new());
    let (trouble, troubled) = watch::channel(None);
    let stop = stop.child_token();
    let follower = Follower {
        dir: dir.clone(),
        config,
        store: store.clone(),
        credentials,
        resident,
        voters,
        trouble,
        stop: stop.clone(),
    };
    let running = tokio::spawn(follower.run());
    let told = timeout(PATIENCE, seen.wait_for(|voters| !voters.is_empty())).await;
    let told = told.expect("who votes is told").unwrap().clone();
    assert_eq!(told, Voters::from([(host, vec![own.clone()])]));
    until("what is noted is what is", async || {
        let StoreConfig::Own { endpoints } = dir.load().unwrap().unwrap().store else {
            panic!("it is the cluster's own")
        };
        (endpoints == [own.clone()]).then_some(())
    })
    .await;
    assert_eq!(*troubled.borrow(), None);
    stop.cancel();
    timeout(Duration::from_secs(60), running).await.expect("it ends").unwrap();
    assert!(store.get(&keys::cluster()).await.is_ok(), "its member goes on");
}

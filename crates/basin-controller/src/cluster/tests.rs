//! Elections among servers that share a store in memory, with real leases.

use std::sync::Arc;
use std::time::Duration;

use basin_model::cluster::{Alive, Leader};
use basin_model::keys;
use basin_model::{HostId, keys::Kind};
use basin_store::records;
use basin_store::{MemStore, Store};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::alive::announce;
use super::leader::{Lead, Leadership, campaign_with};

const TTL: Duration = Duration::from_millis(900);
const LIMIT: Duration = Duration::from_secs(30);

struct Candidate {
    host: HostId,
    leadership: Leadership,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn candidate(store: &Arc<dyn Store>) -> Candidate {
    let host = HostId::from_uuid(Uuid::now_v7());
    let stop = CancellationToken::new();
    let (leadership, run) = campaign_with(store.clone(), host, TTL, stop.clone());
    Candidate { host, leadership, stop, task: tokio::spawn(run) }
}

async fn wait(leadership: &Leadership, what: &str, is: impl FnMut(&Lead) -> bool) -> Lead {
    let mut changes = leadership.changes();
    let waited = tokio::time::timeout(LIMIT, changes.wait_for(is)).await;
    waited.unwrap_or_else(|_| panic!("{what}")).expect("a candidate").clone()
}

fn is_me(lead: &Lead) -> bool {
    matches!(lead, Lead::Me(_))
}

#[tokio::test]
async fn one_leads_and_the_others_know_it() {
    let store: Arc<dyn Store> = Arc::new(MemStore::new());
    let first = candidate(&store);
    wait(&first.leadership, "nobody was elected", is_me).await;
    let others = [candidate(&store), candidate(&store)];
    for other in &others {
        let lead = wait(&other.leadership, "unknown", |l| *l != Lead::Nobody).await;
        assert_eq!(lead, Lead::Other(first.host));
        assert!(!other.leadership.leads() && other.leadership.guard().is_err());
    }
    // One that resigns is replaced by one that then can write, and itself cannot.
    let guard = first.leadership.guard().unwrap();
    guard.put("/basin/v1/x", &1).commit(&*store).await.unwrap();
    let old = first.leadership.guard().unwrap();
    first.stop.cancel();
    first.task.await.unwrap();
    assert_eq!(first.leadership.now(), Lead::Nobody);
    let heads = others.iter().map(|o| wait(&o.leadership, "no heir", |l| *l != Lead::Nobody));
    let heads = futures::future::join_all(heads).await;
    assert_eq!(heads.iter().filter(|l| is_me(l)).count(), 1, "{heads:?}");
    let refused = old.put("/basin/v1/x", &2).commit(&*store).await;
    assert!(matches!(refused, Err(records::CommitError::Refused(_))), "{refused:?}");
}

/// Nobody has to wait for the lease of one that ended in order to run out.
#[tokio::test]
async fn who_stops_gives_the_office_up_at_once() {
    let store: Arc<dyn Store> = Arc::new(MemStore::new());
    // Whichever of the two ends of it is seen first.
    for _ in 0..30 {
        let one = candidate(&store);
        wait(&one.leadership, "nobody was elected", is_me).await;
        one.stop.cancel();
        one.task.await.unwrap();
        let there = records::get::<Leader>(&*store, &keys::leader()).await.unwrap();
        assert!(there.is_none(), "its lease was left");
    }
}

#[tokio::test]
async fn a_dead_leader_is_replaced_and_stops_before() {
    let store: Arc<dyn Store> = Arc::new(MemStore::new());
    let first = candidate(&store);
    wait(&first.leadership, "nobody was elected", is_me).await;
    let heir = candidate(&store);
    wait(&heir.leadership, "unknown", |l| *l == Lead::Other(first.host)).await;
    // Dead without a word: its lease runs out.
    first.task.abort();
    wait(&heir.leadership, "no heir", is_me).await;
    let leader = records::get::<Leader>(&*store, &keys::leader()).await.unwrap().unwrap();
    assert_eq!(leader.value.host, heir.host);
}

#[tokio::test]
async fn a_leader_whose_record_is_gone_cannot_write() {
    let store: Arc<dyn Store> = Arc::new(MemStore::new());
    let one = candidate(&store);
    wait(&one.leadership, "nobody was elected", is_me).await;
    // Somebody removed its record; the lease is renewed and worth nothing: a guard tells.
    let guard = one.leadership.guard().unwrap();
    store
        .commit(basin_store::Txn {
            when: vec![],
            then: vec![basin_store::Op::Delete { key: keys::leader() }],
        })
        .await
        .unwrap();
    let refused = guard.put("/basin/v1/x", &2).commit(&*store).await;
    assert!(matches!(refused, Err(records::CommitError::Refused(_))), "{refused:?}");
}

#[tokio::test]
async fn the_living_are_known_and_the_dead_forgotten() {
    let store: Arc<dyn Store> = Arc::new(MemStore::new());
    let host = HostId::from_uuid(Uuid::now_v7());
    let stop = CancellationToken::new();
    let task = tokio::spawn(announce(store.clone(), host, stop.clone()));
    let alive = async |expect: usize| {
        let look = async {
            loop {
                let (all, _) =
                    records::list::<Alive>(&*store, &Kind::Alive.prefix()).await.unwrap();
                if all.len() == expect {
                    return all;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(LIMIT, look).await.expect("the record comes and goes")
    };
    assert_eq!(alive(1).await[0].value.host, host);
    stop.cancel();
    task.await.unwrap();
    alive(0).await;
}

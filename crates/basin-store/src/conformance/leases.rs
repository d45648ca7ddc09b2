//! Leases.

use std::time::Instant;

use super::*;

const LONG: Duration = Duration::from_secs(3600);
/// etcd counts in seconds, and may itself raise a shorter one.
const SHORT: Duration = Duration::from_secs(2);

fn is_gone<T: std::fmt::Debug>(result: Result<T, StoreError>, lease: LeaseId) {
    assert!(matches!(result, Err(StoreError::LeaseGone(id)) if id == lease), "{result:?}");
}

pub async fn a_revoked_lease_takes_its_keys_in_one_revision(s: Subject) {
    let lease = s.store.grant(LONG).await.unwrap();
    let other = s.store.grant(LONG).await.unwrap();
    assert_ne!(lease, other);
    let ops = vec![s.put_leased("a", "1", Some(lease)), s.put("free", "1")];
    s.set(ops).await;
    let ops = vec![s.put_leased("b", "1", Some(lease)), s.put_leased("c", "1", Some(other))];
    let last = s.set(ops).await;
    let mut watch = s.watch(last).await;
    s.store.revoke(lease).await.unwrap();
    let mut gone = s.next(&mut watch).await;
    gone.sort();
    assert_eq!(gone, ["-a", "-b"]);
    assert_eq!(s.dump().await, ["c=1", "free=1"]);
    // A lease without keys ends without a revision.
    let empty = s.store.grant(LONG).await.unwrap();
    s.store.revoke(empty).await.unwrap();
    s.set(vec![s.put("last", "1")]).await;
    assert_eq!(s.next(&mut watch).await, ["last=1"]);
}

pub async fn a_put_moves_or_frees_its_key(s: Subject) {
    let one = s.store.grant(LONG).await.unwrap();
    let two = s.store.grant(LONG).await.unwrap();
    for name in ["kept", "moved", "freed", "deleted"] {
        s.set(vec![s.put_leased(name, "1", Some(one))]).await;
    }
    let ops = vec![s.put_leased("moved", "2", Some(two)), s.put("freed", "2"), s.delete("deleted")];
    s.set(ops).await;
    s.set(vec![s.put("deleted", "2")]).await;
    s.store.revoke(one).await.unwrap();
    assert_eq!(s.dump().await, ["deleted=2", "freed=2", "moved=2"]);
    s.store.revoke(two).await.unwrap();
    assert_eq!(s.dump().await, ["deleted=2", "freed=2"]);
}

pub async fn a_lease_that_is_gone_is_refused(s: Subject) {
    let lease = s.store.grant(LONG).await.unwrap();
    s.store.renew(lease).await.unwrap();
    s.store.revoke(lease).await.unwrap();
    is_gone(s.store.renew(lease).await, lease);
    is_gone(s.store.revoke(lease).await, lease);
    let then = vec![s.put("free", "1"), s.put_leased("a", "1", Some(lease))];
    is_gone(s.store.commit(Txn { when: vec![], then: then.clone() }).await, lease);
    // The conditions come first.
    assert_eq!(s.commit(vec![s.present("nowhere")], then).await, Commit::Refused);
    assert_eq!(s.dump().await, Vec::<String>::new());
}

pub async fn a_lease_ends_unless_renewed(s: Subject) {
    let lease = s.store.grant(SHORT).await.unwrap();
    let ops = vec![s.put_leased("a", "1", Some(lease)), s.put_leased("b", "1", Some(lease))];
    let last = s.set(ops).await;
    let mut watch = s.watch(last).await;
    let mut gone = s.next(&mut watch).await;
    gone.sort();
    assert_eq!(gone, ["-a", "-b"]);
    assert_eq!(s.dump().await, Vec::<String>::new());
    is_gone(s.store.renew(lease).await, lease);
}

/// Judges only by what it renewed in time: a machine that stalls for longer than
/// the lease lasts proves nothing, so then it starts again.
pub async fn a_renewed_lease_lives(s: Subject) {
    'attempt: loop {
        let mut renewed = Instant::now();
        let start = renewed;
        let lease = s.store.grant(SHORT).await.unwrap();
        s.set(vec![s.put_leased("a", "1", Some(lease))]).await;
        while start.elapsed() < SHORT * 2 {
            tokio::time::sleep(SHORT / 8).await;
            let asked = Instant::now();
            let result = s.store.renew(lease).await;
            let there = s.get("a").await.is_some();
            if renewed.elapsed() > SHORT / 2 {
                continue 'attempt;
            }
            result.expect("renewed in time");
            assert!(there, "the lease lives, and its key with it");
            renewed = asked;
        }
        return;
    }
}

use std::time::Duration;

use basin_model::HostId;
use basin_model::cluster::RemovedHost;
use basin_store::Revision;
use jiff::SignedDuration;
use uuid::Uuid;

use super::*;

const SECRET: &str = "a secret of some length";

fn now() -> Timestamp {
    "2026-05-01T12:00:00Z".parse().unwrap()
}

fn host(n: u128) -> HostId {
    HostId::from_uuid(Uuid::from_u128(n))
}

fn record<T>(key: String, value: T) -> Versioned<T> {
    Versioned::new(key, value, Revision(1))
}

fn ask() -> JoinAsk {
    JoinAsk {
        token: Uuid::from_u128(100),
        secret: SECRET.to_owned(),
        host: host(2),
        name: "srv2".parse().unwrap(),
        address: "10.0.0.2".parse().unwrap(),
        api_port: 7443,
        csr: String::new(),
        version: "0.3.1".to_owned(),
        qemu: None,
        clock: now(),
        datastores: Vec::new(),
    }
}

fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot::default();
    let token = JoinToken {
        id: TokenId::from_uuid(Uuid::from_u128(100)),
        secret_sha256: hash(SECRET),
        created_at: now(),
        expires_at: now() + SignedDuration::from_mins(5),
        used_by: None,
    };
    snapshot.join_tokens.insert(token.id, record(keys::join_token(token.id), token));
    let first = Host {
        id: host(1),
        meta: meta("srv1".parse().unwrap(), "", now()),
        address: Some("10.0.0.1".parse().unwrap()),
        api_port: Some(7443),
        drain: None,
        trunks: Vec::new(),
    };
    snapshot.hosts.insert(first.id, record(keys::host(first.id), first));
    snapshot
}

#[track_caller]
fn check(ask: &JoinAsk, snapshot: &Snapshot, expect: Option<&str>) {
    let verdict = admit(ask, "0.3.0", snapshot, now());
    match (verdict, expect) {
        (Ok(_), None) => {}
        (Err(problem), Some(part)) => {
            assert_eq!(problem.code, "join-refused");
            assert!(problem.detail.contains(part), "{}", problem.detail);
            assert!(!problem.advice.is_empty());
        }
        (verdict, expect) => panic!("{:?}, expected {expect:?}", verdict.map(drop)),
    }
}

#[test]
fn a_good_token_lets_one_server_in() {
    let mut snapshot = snapshot();
    check(&ask(), &snapshot, None);
    check(&JoinAsk { secret: "guess".into(), ..ask() }, &snapshot, Some("not one of this"));
    check(&JoinAsk { token: Uuid::from_u128(5), ..ask() }, &snapshot, Some("not one of this"));

    let token = snapshot.join_tokens.values_mut().next().unwrap();
    token.value.used_by = Some(host(2));
    check(&ask(), &snapshot, None);
    let token = snapshot.join_tokens.values_mut().next().unwrap();
    token.value.used_by = Some(host(1));
    check(&ask(), &snapshot, Some("let in server 'srv1' already"));
}

#[test]
fn what_has_expired_or_was_removed_stays_out() {
    let late = now() + SignedDuration::from_mins(6);
    let ask = JoinAsk { clock: late, ..ask() };
    let refused = admit(&ask, "0.3.0", &snapshot(), late).unwrap_err();
    assert!(refused.detail.contains("expired"), "{}", refused.detail);

    let mut snapshot = snapshot();
    let removed = RemovedHost { host: host(2), name: "srv2".into(), at: now() };
    snapshot.removed_hosts.insert(host(2), record(keys::removed_host(host(2)), removed));
    check(&super::tests::ask(), &snapshot, Some("removed from this cluster"));
}

#[test]
fn a_clock_that_is_wrong_is_told() {
    let off = |by: SignedDuration| JoinAsk { clock: now() + by, ..ask() };
    let most = SignedDuration::try_from(CLOCKS_DIFFER_AT_MOST).unwrap();
    check(&off(most), &snapshot(), None);
    check(&off(most + SignedDuration::from_secs(1)), &snapshot(), Some("301 s apart"));
    check(&off(SignedDuration::from_hours(-1)), &snapshot(), Some("3600 s apart"));
    assert!(CLOCKS_DIFFER_AT_MOST >= Duration::from_secs(60));
}

#[test]
fn releases_are_at_most_one_apart() {
    check(&JoinAsk { version: "0.2.9".into(), ..ask() }, &snapshot(), None);
    check(&JoinAsk { version: "0.4.0".into(), ..ask() }, &snapshot(), None);
    check(&JoinAsk { version: "0.5.0".into(), ..ask() }, &snapshot(), Some("one release apart"));
    check(&JoinAsk { version: "1.3.0".into(), ..ask() }, &snapshot(), Some("one release apart"));
}

#[test]
fn names_and_addresses_are_given_once() {
    check(&JoinAsk { name: "srv1".parse().unwrap(), ..ask() }, &snapshot(), Some("'srv1' already"));
    let address = "10.0.0.1".parse().unwrap();
    check(&JoinAsk { address, ..ask() }, &snapshot(), Some("has the address 10.0.0.1"));
    let address = "127.0.0.1".parse().unwrap();
    check(&JoinAsk { address, ..ask() }, &snapshot(), Some("no other server can reach it"));
}

#[test]
fn datastores_come_along_under_a_name_that_is_free() {
    let mut snapshot = snapshot();
    let own = |n: u128| OwnDatastore {
        id: DatastoreId::from_uuid(Uuid::from_u128(n)),
        name: "default".parse().unwrap(),
        description: String::new(),
        path: "/srv".into(),
        quota: None,
        overcommit_percent: 200,
    };
    let there = Datastore {
        id: own(7).id,
        meta: meta("default".parse().unwrap(), "", now()),
        sharing: Sharing::Local(host(1)),
        kind: DatastoreKind::Dir { path: "/srv".into() },
        quota: None,
        overcommit_percent: 200,
        state: DatastoreState::Ready,
    };
    snapshot.datastores.insert(there.id, record(keys::datastore(there.id), there));
    let txn = admit(&JoinAsk { datastores: vec![own(8)], ..ask() }, "0.3.0", &snapshot, now());
    let written = format!("{:?}", txn.unwrap());
    assert!(written.contains("name/datastore/default-srv2"), "{written}");
    // One that is known already came with an answer that was lost.
    let txn = admit(&JoinAsk { datastores: vec![own(7)], ..ask() }, "0.3.0", &snapshot, now());
    assert!(!format!("{:?}", txn.unwrap()).contains("default-srv2"));
}

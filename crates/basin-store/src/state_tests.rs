use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::Compare;

fn put(key: &str, value: &str) -> Op {
    let value = Bytes::copy_from_slice(value.as_bytes());
    Op::Put { key: key.to_owned(), value, lease: None }
}

fn commit(state: &mut State, then: Vec<Op>) -> Commit {
    let mut draft = Draft::new(state);
    let outcome = draft.commit(&Txn { when: vec![], then }).unwrap();
    let delta = draft.finish();
    state.apply(delta);
    outcome
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_draft_that_is_dropped_changes_nothing() {
    let mut state = State::default();
    commit(&mut state, vec![put("a", "1")]);
    let mut draft = Draft::new(&state);
    draft.commit(&Txn { when: vec![], then: vec![put("a", "2"), put("b", "1")] }).unwrap();
    drop(draft);
    assert_eq!(state.revision, Revision(1));
    assert_eq!(state.list("").entries.len(), 1);
}

#[test]
fn transactions_of_one_draft_see_each_other() {
    let state = State::default();
    let mut draft = Draft::new(&state);
    let first = Txn { when: vec![Compare::Absent("a".into())], then: vec![put("a", "1")] };
    assert_eq!(draft.commit(&first).unwrap(), Commit::Done(Revision(1)));
    assert_eq!(draft.commit(&first).unwrap(), Commit::Refused);
    let second = Compare::Unchanged("a".into(), Revision(1));
    let second = Txn { when: vec![second], then: vec![Op::Delete { key: "a".into() }] };
    assert_eq!(draft.commit(&second).unwrap(), Commit::Done(Revision(2)));
    assert_eq!(draft.finish().entries, BTreeMap::from([("a".to_owned(), None)]));
}

#[test]
fn a_lease_lasts_its_ttl_from_the_last_renewal() {
    let mut state = State::default();
    let mut draft = Draft::new(&state);
    let id = draft.grant(SECOND * 10, SECOND);
    draft.renew(id, SECOND * 5).unwrap();
    draft.expire(SECOND * 14);
    // A renewal that was asked for earlier, handled later.
    draft.renew(id, SECOND * 2).unwrap();
    let delta = draft.finish();
    state.apply(delta);
    assert_eq!(state.next_deadline(), Some(SECOND * 15));
    let mut draft = Draft::new(&state);
    assert!(matches!(draft.renew(id, SECOND * 15), Err(StoreError::LeaseGone(_))));
    draft.expire(SECOND * 15);
    assert!(matches!(draft.revoke(id), Err(StoreError::LeaseGone(_))));
    assert_ne!(draft.grant(SECOND, SECOND), id);
}

#[test]
fn keys_move_between_leases_also_within_a_draft() {
    let mut state = State::default();
    let mut draft = Draft::new(&state);
    let (one, two) = (draft.grant(SECOND, SECOND), draft.grant(SECOND, SECOND));
    let hold = |key: &str, lease| Op::Put { key: key.into(), value: Bytes::new(), lease };
    let txn = |then| Txn { when: vec![], then };
    let keys = vec![hold("a", Some(one)), hold("b", Some(one)), hold("c", Some(one))];
    draft.commit(&txn(keys)).unwrap();
    let delta = draft.finish();
    state.apply(delta);
    let mut draft = Draft::new(&state);
    draft.commit(&txn(vec![hold("a", Some(two)), hold("b", None)])).unwrap();
    draft.revoke(one).unwrap();
    let delta = draft.finish();
    state.apply(delta);
    let left: Vec<String> = state.list("").entries.into_iter().map(|e| e.key).collect();
    assert_eq!(left, ["a", "b"]);
    assert_eq!(state.revision, Revision(3));
}

proptest! {
    #[test]
    fn a_watcher_misses_nothing_or_is_told(
        writes in prop::collection::vec((0u8..4, any::<bool>()), 1..60),
        moments in 1usize..40,
        reads in prop::collection::vec(any::<bool>(), 60),
    ) {
        let limits = HistoryLimits { moments, bytes: 1 << 20 };
        let mut state = State { limits, ..State::default() };
        let (mut seen, mut cursor) = (BTreeMap::new(), Revision(0));
        for ((key, delete), read) in writes.into_iter().zip(reads) {
            let key = format!("k/{key}");
            let op = if delete { Op::Delete { key } } else { put(&key, "v") };
            commit(&mut state, vec![op]);
            prop_assert!(state.history.len() <= moments);
            if !read {
                continue;
            }
            loop {
                match state.next_change("k/", cursor) {
                    Err(StoreError::Compacted(_)) => {
                        let listing = state.list("k/");
                        cursor = listing.revision;
                        seen = listing.entries.into_iter().map(|e| (e.key.clone(), e)).collect();
                    }
                    Err(e) => return Err(TestCaseError::fail(e.to_string())),
                    Ok(NextChange::NoneUpTo(revision)) => {
                        cursor = revision;
                        break;
                    }
                    Ok(NextChange::Found(revision, changes)) => {
                        prop_assert!(revision > cursor);
                        cursor = revision;
                        for change in changes {
                            match change {
                                Change::Put(e) => seen.insert(e.key.clone(), e),
                                Change::Delete { key, .. } => seen.remove(&key),
                            };
                        }
                    }
                }
            }
            let now: Vec<Entry> = state.list("k/").entries;
            prop_assert_eq!(&seen.values().cloned().collect::<Vec<_>>(), &now);
        }
    }
}

//! Random operations on the SQLite store, closed and opened at random points,
//! against the simplest thing that could be right: a map and a log.

use std::collections::BTreeMap;

use basin_store::{Change, Commit, Compare, Entry, Op, Revision, SqliteStore, Store, Txn};
use bytes::Bytes;
use futures::StreamExt;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    /// A condition on a key (by kind), then changes: a value puts, none deletes.
    Commit {
        when: Option<(u8, u8)>,
        then: BTreeMap<u8, Option<u8>>,
    },
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let change = prop::collection::btree_map(0u8..5, any::<Option<u8>>(), 0..4);
    let commit = (prop::option::of((0u8..4, 0u8..5)), change)
        .prop_map(|(when, then)| Step::Commit { when, then });
    prop::collection::vec(prop_oneof![8 => commit, 1 => Just(Step::Reopen)], 1..40)
}

#[derive(Default)]
struct Model {
    entries: BTreeMap<String, Entry>,
    log: Vec<Vec<Change>>,
}

impl Model {
    fn revision(&self) -> Revision {
        Revision(self.log.len() as u64)
    }

    fn condition(&self, kind: u8, key: String) -> Compare {
        let modified = self.entries.get(&key).map_or(Revision(1), |e| e.modified);
        match kind {
            0 => Compare::Absent(key),
            1 => Compare::Present(key),
            2 => Compare::Unchanged(key, modified),
            _ => Compare::Unchanged(key, Revision(modified.0 + 1)),
        }
    }

    fn commit(&mut self, txn: &Txn) -> Commit {
        let holds = txn.when.iter().all(|c| match c {
            Compare::Absent(k) => !self.entries.contains_key(k),
            Compare::Present(k) => self.entries.contains_key(k),
            Compare::Unchanged(k, r) => self.entries.get(k).is_some_and(|e| e.modified == *r),
        });
        if !holds {
            return Commit::Refused;
        }
        let revision = Revision(self.revision().0 + 1);
        let mut changes = Vec::new();
        for op in &txn.then {
            match op.clone() {
                Op::Put { key, value, .. } => {
                    let created = self.entries.get(&key).map_or(revision, |e| e.created);
                    let entry = Entry { key: key.clone(), value, created, modified: revision };
                    self.entries.insert(key, entry.clone());
                    changes.push(Change::Put(entry));
                }
                Op::Delete { key } => {
                    if self.entries.remove(&key).is_some() {
                        changes.push(Change::Delete { key, revision });
                    }
                }
            }
        }
        if !changes.is_empty() {
            self.log.push(changes);
        }
        Commit::Done(self.revision())
    }
}

async fn run(steps: Vec<Step>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.sqlite");
    let mut store = SqliteStore::open(&path).unwrap();
    let mut model = Model::default();
    let key = |k: u8| format!("k/{k}");
    for step in steps {
        match step {
            Step::Reopen => {
                drop(store);
                store = SqliteStore::open(&path).unwrap();
            }
            Step::Commit { when, then } => {
                let op = |(k, value): (u8, Option<u8>)| match value {
                    Some(v) => Op::Put { key: key(k), value: Bytes::from(vec![v]), lease: None },
                    None => Op::Delete { key: key(k) },
                };
                let when = when.map(|(kind, k)| model.condition(kind, key(k)));
                let when = when.into_iter().collect();
                let txn = Txn { when, then: then.into_iter().map(op).collect() };
                assert_eq!(store.commit(txn.clone()).await.unwrap(), model.commit(&txn));
            }
        }
        let listing = store.list("k/").await.unwrap();
        assert_eq!(listing.revision, model.revision());
        assert_eq!(listing.entries, model.entries.values().cloned().collect::<Vec<_>>());
    }
    for after in 0..model.log.len() {
        let mut watch = store.watch("k/", Revision(after as u64)).await.unwrap();
        for expect in &model.log[after..] {
            assert_eq!(&watch.next().await.unwrap().unwrap(), expect);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn the_store_is_what_the_model_says(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(steps));
    }
}

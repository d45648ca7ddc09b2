use std::sync::Arc;

use futures::StreamExt;
use serde_json::{Value, json};

use super::*;
use crate::MemStore;

const KEY: &str = "/basin/v1/vm/a";

#[tokio::test]
async fn records_are_read_as_written() {
    let store = MemStore::new();
    assert_eq!(get::<u32>(&store, KEY).await.unwrap(), None);
    let revision = TxnBuilder::new().create(KEY, &7u32).commit(&store).await.unwrap();
    let read = get::<u32>(&store, KEY).await.unwrap().unwrap();
    assert_eq!(read, Versioned::new(KEY.to_owned(), 7, revision));
    assert_eq!(list::<u32>(&store, "/basin/v1/vm/").await.unwrap(), (vec![read], revision));
}

#[tokio::test]
async fn a_refusal_names_the_condition() {
    let store = MemStore::new();
    TxnBuilder::new().create("taken", &1).create(KEY, &1).commit(&store).await.unwrap();
    let read = get::<u32>(&store, KEY).await.unwrap().unwrap();
    TxnBuilder::new().put(KEY, &2).commit(&store).await.unwrap();
    let check = async |txn: TxnBuilder, expect: Compare| {
        match txn.put("new", &1).commit(&store).await {
            Err(CommitError::Refused(condition)) => assert_eq!(condition, expect),
            other => panic!("{other:?}"),
        }
        assert_eq!(store.get("new").await.unwrap(), None);
    };
    let free = || TxnBuilder::new().require_absent("free");
    check(free().require_absent("taken"), Compare::Absent("taken".to_owned())).await;
    check(free().require_present("no"), Compare::Present("no".to_owned())).await;
    let changed = Compare::Unchanged(KEY.to_owned(), read.revision);
    check(free().require_unchanged(&read), changed).await;
}

#[tokio::test]
async fn updates_of_many_writers_all_count() {
    let store = Arc::new(MemStore::new());
    TxnBuilder::new().create(KEY, &0u32).commit(&*store).await.unwrap();
    let add = |store: Arc<MemStore>| async move {
        for _ in 0..50 {
            update(&*store, KEY, |n: u32| Ok::<_, ()>(n + 1)).await.unwrap();
        }
    };
    let writers: Vec<_> = (0..4).map(|_| tokio::spawn(add(Arc::clone(&store)))).collect();
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(get::<u32>(&*store, KEY).await.unwrap().unwrap().value, 200);
}

#[tokio::test]
async fn an_update_may_refuse_and_writes_only_changes() {
    let store = MemStore::new();
    let keep = |n: u32| Ok::<_, &str>(n);
    let absent = update(&store, KEY, keep).await;
    assert!(matches!(absent, Err(UpdateError::Absent(key)) if key == KEY));
    let revision = TxnBuilder::new().create(KEY, &5u32).commit(&store).await.unwrap();
    assert_eq!(update(&store, KEY, keep).await.unwrap().revision, revision);
    let refused = update(&store, KEY, |_: u32| Err("no")).await;
    assert!(matches!(refused, Err(UpdateError::Refused("no"))));
    assert_eq!(store.get(KEY).await.unwrap().unwrap().modified, revision);
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let store = MemStore::new();
    check_schema(&store).await.unwrap();
    check_schema(&store).await.unwrap();
    let key = basin_model::keys::schema();
    TxnBuilder::new().put(&key, &(SCHEMA + 1)).commit(&store).await.unwrap();
    let error = check_schema(&store).await.unwrap_err();
    assert!(matches!(&error, StoreError::Unusable(why) if why.contains("upgrade")), "{error}");
}

#[tokio::test]
async fn a_watch_lists_follows_and_lists_anew_after_a_compaction() {
    let store = Arc::new(MemStore::new());
    TxnBuilder::new().put("p/a", &1u32).put("q/a", &9).commit(&*store).await.unwrap();
    let mut events = watch_records::<u32>(store.clone(), "p/");
    let keys = |event| match event {
        RecordEvent::Resync { records, .. } => {
            records.into_iter().map(|r: Versioned<u32>| (r.key, r.value)).collect::<Vec<_>>()
        }
        other => panic!("{other:?} is not a resync"),
    };
    let first = events.next().await.unwrap().unwrap();
    assert_eq!(keys(first), [("p/a".to_owned(), 1)]);

    TxnBuilder::new().put("p/b", &2u32).delete("p/a").commit(&*store).await.unwrap();
    let put = events.next().await.unwrap().unwrap();
    assert!(matches!(put, RecordEvent::Put(r) if r.key == "p/b" && r.value == 2));
    let deleted = events.next().await.unwrap().unwrap();
    assert!(matches!(deleted, RecordEvent::Deleted { key, .. } if key == "p/a"));

    let last = TxnBuilder::new().put("p/c", &3u32).commit(&*store).await.unwrap();
    store.compact(last);
    let again = events.next().await.unwrap().unwrap();
    assert_eq!(keys(again), [("p/b".to_owned(), 2), ("p/c".to_owned(), 3)]);
}

#[tokio::test]
async fn a_watch_passes_over_a_record_it_cannot_read() {
    let store = Arc::new(MemStore::new());
    let mut events = watch_records::<u32>(store.clone(), "p/");
    assert!(matches!(events.next().await, Some(Ok(RecordEvent::Resync { .. }))));
    TxnBuilder::new().put("p/a", &json!("text")).commit(&*store).await.unwrap();
    TxnBuilder::new().put("p/b", &2u32).commit(&*store).await.unwrap();
    let bad = events.next().await.unwrap();
    assert!(matches!(&bad, Err(StoreError::Unusable(why)) if why.contains("p/a")), "{bad:?}");
    assert!(matches!(events.next().await, Some(Ok(RecordEvent::Put(r))) if r.key == "p/b"));
}

#[tokio::test]
async fn keys_and_records_of_any_shape_survive() {
    let store = MemStore::new();
    let value = json!({"ü": [null, 1.5, "\u{0}"], "record": {"layout": 9}});
    TxnBuilder::new().put("k", &value).commit(&store).await.unwrap();
    assert_eq!(get::<Value>(&store, "k").await.unwrap().unwrap().value, value);
}

/// A release that knows less of a record changes it.
#[tokio::test]
async fn a_change_keeps_what_only_a_newer_release_knows() {
    #[derive(serde::Serialize, serde::Deserialize, Clone)]
    struct Old {
        size: u32,
    }
    let store = MemStore::new();
    let newer = |size: u32| json!({ "size": size, "color": "red" });
    let shared = "/basin/v1/volume/x";
    let owned = "/basin/v1/vm-status/x";
    let txn = TxnBuilder::new().create(shared, &newer(1)).create(owned, &newer(1));
    txn.commit(&store).await.unwrap();
    let read = async |key| get::<Value>(&store, key).await.unwrap().unwrap().value;

    let old = get::<Old>(&store, shared).await.unwrap().unwrap();
    TxnBuilder::new().replace(&old, &Old { size: 2 }).commit(&store).await.unwrap();
    assert_eq!(read(shared).await, newer(2));
    for key in [shared, owned] {
        let grow = |old: Old| Ok::<_, ()>(Old { size: old.size + 2 });
        update(&store, key, grow).await.unwrap();
    }
    assert_eq!(read(shared).await, newer(4));
    // What one server alone says of itself is what it knows, and no more.
    assert_eq!(read(owned).await, json!({ "size": 3 }));
}

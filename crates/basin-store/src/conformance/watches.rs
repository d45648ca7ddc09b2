//! Watches.

use std::collections::BTreeMap;

use super::*;

pub async fn a_watch_replays_and_follows(s: Subject) {
    let start = s.now().await;
    let first = s.set(vec![s.put("a", "1")]).await;
    s.set(vec![s.put("a", "2")]).await;
    s.set(vec![s.delete("a")]).await;
    let last = s.set(vec![s.put("a", "3")]).await;

    let mut old = s.watch(start).await;
    for expect in ["a=1", "a=2", "-a", "a=3"] {
        assert_eq!(s.next(&mut old).await, [expect]);
    }
    let mut middle = s.watch(first).await;
    assert_eq!(s.next(&mut middle).await, ["a=2"]);
    let mut new = s.watch(last).await;
    assert!(is_quiet(&mut new));

    s.set(vec![s.put("b", "4")]).await;
    assert_eq!(s.next(&mut new).await, ["b=4"]);
    assert_eq!(s.next(&mut old).await, ["b=4"]);
}

pub async fn a_watch_sees_only_its_prefix(s: Subject) {
    let start = s.now().await;
    let mut watch = s.store.watch(&s.key("in/"), start).await.unwrap();
    s.set(vec![s.put("in", "0"), s.put("in0", "0")]).await;
    s.set(vec![s.put("out", "1"), s.put("in/a", "1")]).await;
    s.set(vec![s.delete("out")]).await;
    s.set(vec![s.delete("in/a")]).await;
    assert_eq!(s.next(&mut watch).await, ["in/a=1"]);
    assert_eq!(s.next(&mut watch).await, ["-in/a"]);
}

/// Four writers, and watches that begin all the while: each sees every change
/// after its start once, in order, and ends with what the store holds.
pub async fn a_watch_of_many_writers_loses_nothing(s: Subject) {
    const WRITES: usize = 50;
    let s = Arc::new(s);
    let start = s.now().await;
    let mut watch = s.watch(start).await;
    let writers: Vec<_> = (0..4)
        .map(|w| {
            let s = Arc::clone(&s);
            tokio::spawn(async move {
                for n in 0..WRITES {
                    let op = if n % 5 == 4 {
                        s.delete(&format!("{w}"))
                    } else {
                        s.put(&format!("{w}"), &n.to_string())
                    };
                    s.set(vec![op, s.put(&format!("{w}/n"), &n.to_string())]).await;
                }
            })
        })
        .collect();
    let (mut seen, mut moments, mut last) = (BTreeMap::new(), 0, start);
    while moments < 4 * WRITES {
        let changes = next(&mut watch).await.unwrap();
        moments += 1;
        let revision = changes[0].revision();
        assert!(revision > last, "{revision:?} after {last:?}");
        last = revision;
        for change in &changes {
            assert_eq!(change.revision(), revision);
            match change {
                Change::Put(entry) => seen.insert(entry.key.clone(), entry.clone()),
                Change::Delete { key, .. } => seen.remove(key),
            };
        }
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let listing = s.store.list(&s.prefix).await.unwrap();
    assert_eq!(seen.into_values().collect::<Vec<_>>(), listing.entries);
}

pub async fn a_watch_of_compacted_history_says_so(s: Subject) {
    let first = s.set(vec![s.put("a", "1")]).await;
    s.set(vec![s.put("a", "2")]).await;
    let third = s.set(vec![s.put("a", "3")]).await;
    s.set(vec![s.put("a", "4")]).await;
    (s.compact)(third).await;

    let error = match s.store.watch(&s.prefix, first).await {
        Ok(mut watch) => next(&mut watch).await.expect_err("the history is gone"),
        Err(e) => e,
    };
    assert!(matches!(error, StoreError::Compacted(_)), "{error:?}");
    let mut later = s.watch(third).await;
    assert_eq!(s.next(&mut later).await, ["a=4"]);
    assert_eq!(s.dump().await, ["a=4"]);
    s.set(vec![s.put("a", "5")]).await;
    assert_eq!(s.next(&mut later).await, ["a=5"]);
}

pub async fn many_watches_see_the_same(s: Subject) {
    let start = s.now().await;
    let mut watches = Vec::new();
    for _ in 0..20 {
        watches.push(s.watch(start).await);
    }
    let names: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    for name in &names {
        s.set(vec![s.put(name, "x")]).await;
    }
    for watch in &mut watches {
        for name in &names {
            assert_eq!(s.next(watch).await, [format!("{name}=x")]);
        }
    }
}

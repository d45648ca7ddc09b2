//! Transactions and reads.

use super::*;

pub async fn a_key_is_born_changed_deleted_and_born_again(s: Subject) {
    assert_eq!(s.get("a").await, None);
    let born = s.set(vec![s.put("a", "1")]).await;
    let first = s.get("a").await.unwrap();
    assert_eq!((first.key.clone(), &first.value[..]), (s.key("a"), &b"1"[..]));
    assert_eq!((first.created, first.modified), (born, born));

    // The same value again is a change, too.
    let again = s.set(vec![s.put("a", "1")]).await;
    assert!(again > born);
    let second = s.get("a").await.unwrap();
    assert_eq!((second.created, second.modified), (born, again));

    let gone = s.set(vec![s.delete("a")]).await;
    assert!(gone > again);
    assert_eq!(s.get("a").await, None);
    let reborn = s.set(vec![s.put("a", "2")]).await;
    let third = s.get("a").await.unwrap();
    assert_eq!((third.created, third.modified), (reborn, reborn));
    assert!(s.now().await >= reborn);
}

pub async fn a_refused_transaction_changes_nothing(s: Subject) {
    let old = s.set(vec![s.put("there", "1")]).await;
    let new = s.set(vec![s.put("there", "2")]).await;
    let check = async |when: Vec<Compare>, expect: bool| {
        let before = s.dump().await;
        let commit = s.commit(when.clone(), vec![s.put("x", "1"), s.put("y", "1")]).await;
        assert_eq!(matches!(commit, Commit::Done(_)), expect, "{when:?}");
        if expect {
            s.set(vec![s.delete("x"), s.delete("y")]).await;
        }
        assert_eq!(s.dump().await, before, "{when:?}");
    };
    check(vec![s.absent("there")], false).await;
    check(vec![s.absent("nowhere")], true).await;
    check(vec![s.present("there")], true).await;
    check(vec![s.present("nowhere")], false).await;
    check(vec![s.unchanged("there", old)], false).await;
    check(vec![s.unchanged("there", new)], true).await;
    check(vec![s.unchanged("nowhere", new)], false).await;
    check(vec![s.present("there"), s.absent("there")], false).await;
    check(vec![s.absent("there"), s.present("there")], false).await;
    check(vec![s.present("there"), s.unchanged("there", new), s.absent("nowhere")], true).await;
}

pub async fn a_deleted_and_recreated_key_is_not_unchanged(s: Subject) {
    let first = s.set(vec![s.put("a", "1")]).await;
    s.set(vec![s.delete("a")]).await;
    let second = s.set(vec![s.put("a", "1")]).await;
    let change = vec![s.put("a", "2")];
    assert_eq!(s.commit(vec![s.unchanged("a", first)], change.clone()).await, Commit::Refused);
    let done = s.commit(vec![s.unchanged("a", second)], change).await;
    assert!(matches!(done, Commit::Done(_)));
    assert_eq!(s.dump().await, ["a=2"]);
}

pub async fn a_transaction_is_one_revision(s: Subject) {
    let start = s.set(vec![s.put("old", "1")]).await;
    let ops = vec![s.put("b", "1"), s.delete("old"), s.put("a", "1")];
    let revision = s.set(ops).await;
    for name in ["a", "b"] {
        assert_eq!(s.get(name).await.unwrap().modified, revision);
    }
    let mut watch = s.watch(start).await;
    let changes = next(&mut watch).await.unwrap();
    assert!(changes.iter().all(|c| c.revision() == revision), "{changes:?}");
    let mut shown: Vec<String> = changes.iter().map(|c| s.show(c)).collect();
    shown.sort();
    assert_eq!(shown, ["-old", "a=1", "b=1"]);
}

pub async fn what_changes_nothing_makes_no_revision(s: Subject) {
    let last = s.set(vec![s.put("a", "1")]).await;
    let mut watch = s.watch(last).await;
    let done = s.commit(vec![s.present("a")], vec![]).await;
    assert!(matches!(done, Commit::Done(revision) if revision >= last));
    assert!(s.set(vec![s.delete("nowhere")]).await >= last);
    assert_eq!(s.get("a").await.unwrap().modified, last);
    s.set(vec![s.put("b", "1")]).await;
    assert_eq!(s.next(&mut watch).await, ["b=1"]);
}

pub async fn transactions_that_etcd_refuses_are_refused(s: Subject) {
    let check = async |when: Vec<Compare>, then: Vec<Op>, expect: Option<&str>| {
        let got = s.store.commit(Txn { when, then }).await;
        match (&got, expect) {
            (Ok(Commit::Done(_)), None) => (),
            (Err(StoreError::Invalid(why)), Some(word)) if why.contains(word) => (),
            _ => panic!("{got:?}, expected {expect:?}"),
        }
    };
    let empty = Op::Put { key: String::new(), value: Bytes::new(), lease: None };
    check(vec![], vec![s.put("a", "1"), s.put("a", "2")], Some("twice")).await;
    check(vec![], vec![s.put("a", "1"), s.delete("a")], Some("twice")).await;
    check(vec![], vec![s.put("a", "1"), empty], Some("empty")).await;
    let many = |n: usize| (0..n).map(|i| s.put(&format!("many/{i}"), "")).collect::<Vec<_>>();
    check(vec![], many(Txn::MAX_OPS + 1), Some("at most")).await;
    let large = "x".repeat(Txn::MAX_BYTES);
    check(vec![], vec![s.put("a", &large)], Some("at most")).await;
    assert_eq!(s.dump().await, Vec::<String>::new());

    check(vec![], many(Txn::MAX_OPS), None).await;
    let when = (0..Txn::MAX_OPS).map(|i| s.present(&format!("many/{i}"))).collect();
    check(when, vec![s.put("a", &large[..large.len() - s.key("a").len()])], None).await;
}

pub async fn a_prefix_covers_exactly_its_keys(s: Subject) {
    for name in ["a", "a/", "a/1", "a/2/x", "a/\u{10ffff}", "a0", "b", "A/1"] {
        s.set(vec![s.put(name, "")]).await;
    }
    let check = async |prefix: &str, expect: &[&str]| {
        let listing = s.store.list(&s.key(prefix)).await.unwrap();
        let names: Vec<&str> = listing.entries.iter().map(|e| &e.key[s.prefix.len()..]).collect();
        assert_eq!(names, expect, "{prefix}");
    };
    check("a/", &["a/", "a/1", "a/2/x", "a/\u{10ffff}"]).await;
    check("a/\u{10ffff}", &["a/\u{10ffff}"]).await;
    check("a", &["a", "a/", "a/1", "a/2/x", "a/\u{10ffff}", "a0"]).await;
    check("c", &[]).await;
    check("", &["A/1", "a", "a/", "a/1", "a/2/x", "a/\u{10ffff}", "a0", "b"]).await;
}

pub async fn values_are_bytes(s: Subject) {
    let all: Vec<u8> = (0..=255).collect();
    for value in [vec![], all, vec![0; 900 << 10]] {
        let value = Bytes::from(value);
        let key = s.key("a");
        s.set(vec![Op::Put { key, value: value.clone(), lease: None }]).await;
        assert_eq!(s.get("a").await.unwrap().value, value);
    }
}

pub async fn a_list_is_of_one_revision(s: Subject) {
    let s = Arc::new(s);
    let writer = tokio::spawn({
        let s = Arc::clone(&s);
        async move {
            for n in 0..100 {
                let n = n.to_string();
                s.set(vec![s.put("a", &n), s.put("b", &n)]).await;
            }
        }
    });
    while !writer.is_finished() {
        let listing = s.store.list(&s.prefix).await.unwrap();
        let values: Vec<_> = listing.entries.iter().map(|e| (&e.value, e.modified)).collect();
        assert!(values.windows(2).all(|w| w[0] == w[1]), "{values:?}");
        assert!(values.iter().all(|(_, modified)| *modified <= listing.revision));
        // The revision is that of the list: what comes later is still to be seen.
        let mut watch = s.watch(listing.revision).await;
        if let Some(item) = watch.next().now_or_never() {
            let changes = item.unwrap().unwrap();
            assert!(changes.iter().all(|c| c.revision() > listing.revision));
        }
    }
    writer.await.unwrap();
}

pub async fn concurrent_compare_and_swap_counts_every_increment(s: Subject) {
    let s = Arc::new(s);
    s.set(vec![s.put("n", "0")]).await;
    let writers: Vec<_> = (0..4)
        .map(|_| {
            let s = Arc::clone(&s);
            tokio::spawn(async move {
                for _ in 0..25 {
                    loop {
                        let read = s.get("n").await.unwrap();
                        let n: u32 = std::str::from_utf8(&read.value).unwrap().parse().unwrap();
                        let then = vec![s.put("n", &(n + 1).to_string())];
                        let when = vec![s.unchanged("n", read.modified)];
                        if s.commit(when, then).await != Commit::Refused {
                            break;
                        }
                    }
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(s.dump().await, ["n=100"]);
}

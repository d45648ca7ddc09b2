//! The SQLite store and its file: restarts, other daemons, damage, full disks.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use basin_store::records::{self, TxnBuilder};
use basin_store::{Change, Commit, Compare, Op, Revision, SqliteStore, Store, StoreError, Txn};
use bytes::Bytes;
use futures::StreamExt;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rusqlite::Connection;

fn put(key: &str, value: Vec<u8>) -> Op {
    Op::Put { key: key.to_owned(), value: Bytes::from(value), lease: None }
}

async fn set(store: &SqliteStore, then: Vec<Op>) -> Result<Commit, StoreError> {
    store.commit(Txn { when: vec![], then }).await
}

/// The error of an open that must fail, which names the file.
fn refusal(path: &Path) -> String {
    match SqliteStore::open(path) {
        Err(StoreError::Unusable(why)) => {
            assert!(why.contains(path.to_str().unwrap()), "{why}");
            why
        }
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("{} was opened", path.display()),
    }
}

#[tokio::test]
async fn a_second_daemon_is_refused_until_the_first_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.sqlite");
    let first = SqliteStore::open(&path).unwrap();
    assert!(refusal(&path).contains("another Basin daemon"));
    drop(first);
    SqliteStore::open(&path).unwrap();
}

#[tokio::test]
async fn nobody_else_may_read_or_write_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.sqlite");
    let store = SqliteStore::open(&path).unwrap();
    set(&store, vec![put("a", vec![1])]).await.unwrap();
    for file in fs::read_dir(dir.path()).unwrap() {
        let file = file.unwrap();
        let mode = file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{:?} has mode {mode:o}", file.path());
    }
    let other = Connection::open(&path).unwrap();
    assert!(other.execute("DELETE FROM entry", []).is_err());
}

#[tokio::test]
async fn files_that_are_not_ours_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let check = |name: &str, expect: &str, make: &dyn Fn(&Path)| {
        let path = dir.path().join(name);
        make(&path);
        let before = fs::read(&path).unwrap();
        let why = refusal(&path);
        assert!(why.contains(expect), "{name}: {why}");
        assert_eq!(fs::read(&path).unwrap(), before, "{name}");
    };
    check("text", "damaged", &|path| fs::write(path, "not a database\n".repeat(100)).unwrap());
    check("other", "another program", &|path| {
        Connection::open(path).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    });
    check("newer", "upgrade", &|path| {
        drop(SqliteStore::open(path).unwrap());
        let db = Connection::open(path).unwrap();
        db.execute_batch("PRAGMA journal_mode = DELETE; PRAGMA user_version = 99").unwrap();
    });
    check("damaged", "damaged", &|path| {
        drop(SqliteStore::open(path).unwrap());
        let mut bytes = fs::read(path).unwrap();
        let page = 4096;
        assert!(bytes.len() > 2 * page);
        bytes[page..2 * page].fill(0xa5);
        fs::write(path, bytes).unwrap();
    });
}

#[tokio::test]
async fn a_missing_directory_is_named() {
    let path = Path::new("/nonexistent/basin/store.sqlite");
    let error = SqliteStore::open(path).err().unwrap();
    let named = error.to_string().contains("/nonexistent/basin");
    assert!(matches!(error, StoreError::Unavailable(_)) && named, "{error}");
}

#[tokio::test]
async fn a_watch_goes_on_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.sqlite");
    let store = SqliteStore::open(&path).unwrap();
    let start = store.list("").await.unwrap().revision;
    let mut open = store.watch("", start).await.unwrap();
    set(&store, vec![put("a", vec![1])]).await.unwrap();
    set(&store, vec![put("a", vec![2]), put("b", vec![1])]).await.unwrap();
    set(&store, vec![Op::Delete { key: "a".to_owned() }]).await.unwrap();
    let mut before = Vec::new();
    for _ in 0..3 {
        before.push(open.next().await.unwrap().unwrap());
    }
    drop(store);
    // A watch on a store that was closed says so.
    assert!(matches!(open.next().await, Some(Err(StoreError::Unavailable(_)))));
    assert!(open.next().await.is_none());

    let store = SqliteStore::open(&path).unwrap();
    let mut again = store.watch("", start).await.unwrap();
    for expect in before {
        assert_eq!(again.next().await.unwrap().unwrap(), expect);
    }
    let last = store.list("").await.unwrap().revision;
    assert_eq!(last, Revision(start.0 + 3));
    set(&store, vec![put("c", vec![1])]).await.unwrap();
    let next = again.next().await.unwrap().unwrap();
    assert!(matches!(&next[..], [Change::Put(e)] if e.key == "c" && e.modified > last));
}

#[tokio::test]
async fn compacted_history_stays_compacted_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.sqlite");
    let store = SqliteStore::open(&path).unwrap();
    let Commit::Done(first) = set(&store, vec![put("a", vec![1])]).await.unwrap() else {
        panic!("refused")
    };
    store.compact(first);
    set(&store, vec![put("a", vec![2])]).await.unwrap();
    drop(store);
    let store = SqliteStore::open(&path).unwrap();
    assert!(matches!(store.watch("", Revision(0)).await, Err(StoreError::Compacted(_))));
    assert!(store.watch("", first).await.is_ok());
}

#[tokio::test]
async fn leases_go_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.sqlite");
    let store = SqliteStore::open(&path).unwrap();
    let long = store.grant(Duration::from_secs(3600)).await.unwrap();
    let short = store.grant(Duration::from_secs(1)).await.unwrap();
    let ended = store.grant(Duration::from_secs(3600)).await.unwrap();
    TxnBuilder::new().put_leased("long", &1, long).commit(&store).await.unwrap();
    TxnBuilder::new().put_leased("short", &1, short).commit(&store).await.unwrap();
    store.revoke(ended).await.unwrap();
    drop(store);

    let store = SqliteStore::open(&path).unwrap();
    let now = store.list("").await.unwrap().revision;
    // If the lease has ended since the opening, history has it, too.
    let mut watch = store.watch("short", Revision(now.0 - 1)).await.unwrap();
    loop {
        let changes = watch.next().await.unwrap().unwrap();
        if matches!(&changes[..], [Change::Delete { key, .. }] if key == "short") {
            break;
        }
    }
    store.renew(long).await.unwrap();
    assert!(matches!(store.renew(ended).await, Err(StoreError::LeaseGone(_))));
    assert!(records::get::<u32>(&store, "long").await.unwrap().is_some());
    // Ids are not given out twice.
    assert!(store.grant(Duration::from_secs(3600)).await.unwrap() > ended);
    store.revoke(long).await.unwrap();
    drop(store);
    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(store.list("").await.unwrap().entries, []);
}

/// On a real file system of 512 KiB, in a mount namespace of its own, so that
/// nothing is left whatever happens.
#[test]
fn a_full_disk_refuses_and_harms_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = dir.path().to_owned();
    std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("tmpfs"), &mounted, Some("tmpfs"), MsFlags::empty(), Some("size=512k")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(fill_and_free(&mounted));
    })
    .join()
    .unwrap();
}

async fn fill_and_free(dir: &Path) {
    let path = dir.join("store.sqlite");
    let ballast = dir.join("ballast");
    fs::write(&ballast, vec![7; 200 << 10]).unwrap();
    let store = SqliteStore::open(&path).unwrap();
    let mut written = 0;
    let error = loop {
        let ops = vec![put(&format!("k/{written}"), vec![1; 4000]), put("last", vec![written])];
        match set(&store, ops).await {
            Ok(_) => written += 1,
            Err(e) => break e,
        }
    };
    assert!(matches!(&error, StoreError::Unavailable(w) if w.contains("is full")), "{error}");
    let consistent = async |store: &SqliteStore| {
        let entries = store.list("k/").await.unwrap().entries;
        assert_eq!(entries.len(), written as usize);
        assert_eq!(store.get("last").await.unwrap().unwrap().value[..], [written - 1]);
    };
    consistent(&store).await;
    // What a failed commit would have written is no condition for the next.
    let absent = Compare::Absent(format!("k/{written}"));
    let refused = store.commit(Txn { when: vec![absent.clone()], then: vec![] }).await.unwrap();
    assert!(matches!(refused, Commit::Done(_)));
    fs::remove_file(&ballast).unwrap();
    let then = vec![put("free", vec![1])];
    let done = store.commit(Txn { when: vec![absent], then }).await.unwrap();
    assert!(matches!(done, Commit::Done(_)));
    drop(store);
    let store = SqliteStore::open(&path).unwrap();
    consistent(&store).await;
    assert!(store.get("free").await.unwrap().is_some());
}

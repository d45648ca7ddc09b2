//! kill -9 while many commits are under way: what was acknowledged is there.
//!
//! The test starts itself as a child that writes and prints each key after its
//! commit was acknowledged; kills it after some hundred; reads the store.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use basin_store::records::{self, TxnBuilder};
use basin_store::{SqliteStore, Store};

const WRITERS: usize = 8;

fn main() {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some("child") {
        let path = args.next().expect("a path");
        write_until_killed(Path::new(&path), &args.next().expect("a round"));
    } else {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("store.sqlite");
        let mut acknowledged = BTreeSet::new();
        for round in 0..6u32 {
            // Also long before the first checkpoint and long after it.
            kill_one(&path, round, 20 + 400 * round as usize, &mut acknowledged);
            verify(&path, &acknowledged);
        }
        println!("test crash ... ok ({} acknowledged commits)", acknowledged.len());
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn write_until_killed(path: &Path, round: &str) {
    let store = Arc::new(SqliteStore::open(path).expect("the store opens"));
    let writers = (0..WRITERS).map(|w| {
        let (store, round) = (Arc::clone(&store), round.to_owned());
        tokio::spawn(async move {
            for n in 0u64.. {
                let id = format!("{round}-{w}-{n}");
                // Two keys, so that half a transaction would show.
                TxnBuilder::new()
                    .create(format!("a/{id}"), &n)
                    .create(format!("b/{id}"), &"x".repeat(300))
                    .commit(&*store)
                    .await
                    .expect("the commit is done");
                let mut out = std::io::stdout().lock();
                writeln!(out, "{id}").and_then(|()| out.flush()).expect("the parent reads");
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("a writer goes on until the kill");
    }
}

fn kill_one(path: &Path, round: u32, after: usize, acknowledged: &mut BTreeSet<String>) {
    let me = std::env::current_exe().expect("the path of this test");
    let mut child = Command::new(me)
        .arg("child")
        .arg(path)
        .arg(round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the child starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    for line in lines.by_ref().take(after) {
        acknowledged.insert(line.expect("a line"));
    }
    child.kill().expect("SIGKILL");
    // What it still said before it died counts, too; the last line may be cut.
    acknowledged.extend(lines.map_while(Result::ok).filter(|l| l.split('-').count() == 3));
    child.wait().expect("the child is dead");
}

#[tokio::main(flavor = "current_thread")]
async fn verify(path: &Path, acknowledged: &BTreeSet<String>) {
    let store = SqliteStore::open(path).expect("the store opens after a crash");
    let ids = async |prefix: &str| {
        let entries = store.list(prefix).await.expect("a list").entries;
        let name = |key: &str| key[prefix.len()..].to_owned();
        entries.iter().map(|e| name(&e.key)).collect::<BTreeSet<_>>()
    };
    let (a, b) = (ids("a/").await, ids("b/").await);
    assert_eq!(a, b, "half a transaction is there");
    let lost: Vec<_> = acknowledged.difference(&a).collect();
    assert!(lost.is_empty(), "acknowledged, but lost: {lost:?}");
    // Every record is whole.
    let (values, _) = records::list::<u64>(&store, "a/").await.expect("records");
    assert_eq!(values.len(), a.len());
}

//! How many commits a second the SQLite store makes durable, alone and together.
//!
//! `cargo run --release -p basin-store --example commit_rate -- DIRECTORY`, on
//! the disk that is to be measured.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use basin_store::SqliteStore;
use basin_store::records::TxnBuilder;

const RUN: Duration = Duration::from_secs(3);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let dir = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(dir)?;
    let store = Arc::new(SqliteStore::open(&dir.path().join("store.sqlite"))?);
    let record = "x".repeat(1000);
    for writers in [1, 4, 16, 64, 256] {
        let start = Instant::now();
        let tasks: Vec<_> = (0..writers)
            .map(|w| {
                let (store, record) = (Arc::clone(&store), record.clone());
                tokio::spawn(async move {
                    let (key, mut latencies) = (format!("k/{w}"), Vec::new());
                    while start.elapsed() < RUN {
                        let begin = Instant::now();
                        TxnBuilder::new().put(&key, &record).commit(&*store).await?;
                        latencies.push(begin.elapsed());
                    }
                    Ok::<_, basin_store::records::CommitError>(latencies)
                })
            })
            .collect();
        let mut latencies = Vec::new();
        for task in tasks {
            latencies.extend(task.await??);
        }
        latencies.sort();
        let rate = latencies.len() as f64 / start.elapsed().as_secs_f64();
        let at = |share: usize| latencies[(latencies.len() - 1) * share / 100];
        println!("{writers:4} writers: {rate:8.0}/s, p50 {:?}, p99 {:?}", at(50), at(99));
    }
    Ok(())
}

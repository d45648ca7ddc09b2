//! All servers but those with a controller, in one process.
//!
//! A *whole* one has its node, with everything that costs in memory and time. Of the
//! others there is what etcd sees: a record, a lease that is renewed, and the watch of a
//! daemon, whose changes are received and thrown away.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use basin_controller::cluster::alive;
use basin_model::keys::{self, ROOT};
use basin_node::LocalNode;
use basin_store::Store;
use basin_store::records::TxnBuilder;
use futures::{StreamExt, TryStreamExt, stream};
use tokio_util::sync::CancellationToken;

use super::told::Told;
use super::{connect, controller, node, shared, world};

/// Servers of which there is little on one connection to etcd. Each has its own in the
/// field; here that would be the descriptors and buffers of a thousand.
const ON_A_CONNECTION: usize = 20;

/// Each reads everything there is. A daemon that cannot is started again.
const STARTING_AT_ONCE: usize = 4;
const TRIES: usize = 20;
const PAUSE: Duration = Duration::from_secs(1);

pub async fn run(etcd: &str, servers: usize, whole: usize, dir: &Path) -> anyhow::Result<()> {
    let mut starts = Vec::new();
    let mut nearest = None;
    for number in controller::COUNT..servers {
        let n = number - controller::COUNT;
        let store: Arc<dyn Store> = match &nearest {
            Some(store) if n >= whole && !n.is_multiple_of(ON_A_CONNECTION) => Arc::clone(store),
            _ => connect(etcd)?,
        };
        nearest = Some(store.clone());
        starts.push((n < whole, number, store));
    }
    let started = stream::iter(starts.into_iter().map(Ok::<_, anyhow::Error>));
    let started = started.map_ok(|(whole, number, store)| async move {
        let mut tries = 0;
        loop {
            match begin(store.clone(), number, whole, dir).await {
                Err(error) if tries < TRIES => eprintln!("server {number}, again: {error}"),
                other => return other,
            }
            tries += 1;
            tokio::time::sleep(PAUSE).await;
        }
    });
    // The nodes end when they are dropped.
    let nodes: Vec<_> = started.try_buffer_unordered(STARTING_AT_ONCE).try_collect().await?;
    println!("ready");
    std::future::pending::<()>().await;
    drop(nodes);
    Ok(())
}

async fn begin(
    store: Arc<dyn Store>,
    number: usize,
    whole: bool,
    dir: &Path,
) -> anyhow::Result<Option<Arc<LocalNode>>> {
    let shared = shared(store.clone());
    watch(&*shared).await?;
    let node = if whole {
        Some(node::start(Arc::new(Told(shared)), number, dir).await?)
    } else {
        let (host, status) = (world::host(number), world::host_status(world::host(number)));
        TxnBuilder::new().put(keys::host_status(host), &status).commit(&*store).await?;
        None
    };
    tokio::spawn(alive::announce(store, world::host(number), CancellationToken::new()));
    Ok(node)
}

/// Receives all that a daemon receives, and throws it away.
async fn watch(store: &dyn Store) -> anyhow::Result<()> {
    let now = store.list(&keys::leader()).await?.revision;
    let mut changes = store.watch(ROOT, now).await?;
    tokio::spawn(async move { while let Some(Ok(_)) = changes.next().await {} });
    Ok(())
}

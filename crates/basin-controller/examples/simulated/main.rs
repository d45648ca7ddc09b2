//! Servers of a cluster that have no machines, for the benchmark of scale: what a
//! server does to etcd and in its daemon is real, the guests are not.
//!
//! ```text
//! simulated load ETCD SERVERS VMS              writes the records of a running cluster
//! simulated servers ETCD SERVERS WHOLE DIR     everybody but the controllers
//! simulated controller ETCD NUMBER DIR         one server with its controller; DIR/api.sock
//! ```
//!
//! Each says on its output what the benchmark waits for: `ready`; `leads`, of a
//! controller that begins to lead; `did STATE VM NANOSECONDS`, of a server that has
//! done what was wanted of a VM, by the clock of the day.

mod controller;
mod fabric;
mod node;
mod servers;
mod told;
mod world;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use basin_model::keys::ROOT;
use basin_store::etcd::EtcdOptions;
use basin_store::{EtcdStore, Fanout, Store};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["load", etcd, servers, vms] => {
            world::load(&*connect(etcd)?, servers.parse()?, vms.parse()?).await
        }
        ["servers", etcd, servers, whole, dir] => {
            servers::run(etcd, servers.parse()?, whole.parse()?, &PathBuf::from(dir)).await
        }
        ["controller", etcd, number, dir] => {
            controller::run(shared(connect(etcd)?), number.parse()?, &PathBuf::from(dir)).await
        }
        _ => bail!("simulated load|servers|controller: see the source"),
    }
}

fn connect(etcd: &str) -> anyhow::Result<Arc<dyn Store>> {
    let options = EtcdOptions::new(vec![etcd.to_owned()], None);
    Ok(Arc::new(EtcdStore::connect(&options).with_context(|| format!("etcd at {etcd}"))?))
}

/// What a daemon has: all that watch in it are told by one watch.
fn shared(store: Arc<dyn Store>) -> Arc<dyn Store> {
    Arc::new(Fanout::new(store, ROOT))
}

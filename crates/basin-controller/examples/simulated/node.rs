//! A server's whole node over machines, disks and networks that are not there.

use std::path::Path;
use std::sync::Arc;

use anyhow::anyhow;
use basin_model::host::{KvmVerdict, QemuInfo};
use basin_node::{Alone, BlockdMode, FakeDisks, LocalNode, NodeConfig};
use basin_qemu::fake::FakeEngine;
use basin_store::Store;

use super::fabric::NoFabric;
use super::world;

pub async fn start(
    store: Arc<dyn Store>,
    number: usize,
    dir: &Path,
) -> anyhow::Result<Arc<LocalNode>> {
    let dir = dir.join(number.to_string());
    let config = NodeConfig {
        host: world::host(number),
        state_dir: dir.join("state"),
        run_dir: dir.join("run"),
        slice: Some(world::CAPACITY),
        blockd: BlockdMode::Given(Arc::new(FakeDisks::new())),
        qemu: QemuInfo::Usable { path: "simulated".to_owned(), version: "7.2.22".to_owned() },
        kvm: KvmVerdict { usable: true, reason: "simulated".to_owned() },
        peers: Arc::new(Alone),
        image_cache: None,
        hardware: None,
    };
    let node = LocalNode::start(config, store, Arc::new(FakeEngine::new()), Arc::new(NoFabric));
    node.await.map_err(|e| anyhow!("server {number}: {}; {}", e.0.detail, e.0.advice))
}

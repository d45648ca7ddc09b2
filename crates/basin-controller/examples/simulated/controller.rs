//! A server with its controller: node, inventory, election, workflows, API on a socket.
//!
//! It reaches no other server: nothing that is measured needs that, and a request that
//! only the leader may answer is held until this one leads, or refused.

use std::path::Path;
use std::sync::Arc;

use basin_controller::app::auth::Administrators;
use basin_controller::app::inventory::Inventory;
use basin_controller::app::nodes::Nodes;
use basin_controller::app::{App, Services};
use basin_controller::cluster::{alive, duty, leader};
use basin_controller::http::{self, Context, listen};
use basin_controller::workflow::Workflows;
use basin_controller::workflows;
use basin_store::Store;
use tokio_util::sync::CancellationToken;

use super::told::Told;
use super::{node, world};

/// Servers that have one of these; the first ones.
pub const COUNT: usize = 3;

pub async fn run(store: Arc<dyn Store>, number: usize, dir: &Path) -> anyhow::Result<()> {
    let (host, stop) = (world::host(number), CancellationToken::new());
    let inventory = Inventory::open(store.clone()).await?;
    let node = node::start(Arc::new(Told(store.clone())), number, dir).await?;
    tokio::spawn(alive::announce(store.clone(), host, stop.clone()));
    let nodes = Nodes::single(host, node);
    let services = Arc::new(Services { store: store.clone(), inventory, nodes });
    let flows = Workflows::new(store.clone(), services.clone(), workflows::registry());
    let (leadership, campaign) = leader::campaign(store, host, stop.clone());
    tokio::spawn(campaign);
    let app = Arc::new(App::new(services, flows).led(leadership.clone()));
    tokio::spawn(duty::serve(leadership.clone(), app.workflows.clone(), stop.clone()));
    let router = http::router(Context::new(app, Arc::new(Administrators)));
    let socket = listen::bind_socket(&dir.join("api.sock"))?;
    println!("ready");
    let mut changes = leadership.changes();
    tokio::spawn(async move {
        while changes.changed().await.is_ok() {
            if leadership.leads() {
                println!("leads");
            }
        }
    });
    listen::serve_socket(socket, router, stop).await;
    Ok(())
}

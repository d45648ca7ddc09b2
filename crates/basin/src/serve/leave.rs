//! A server that was removed from its cluster, or whose cluster was restored from a
//! backup elsewhere: how it finds out, and begins anew.

use std::sync::Arc;

use anyhow::Context as _;
use basin_controller::app::App;
use basin_model::cluster::RemovedHost;
use basin_model::host::Host;
use basin_model::{HostId, keys};
use basin_node::cluster::{ClusterDir, leave, newer_store, no_member, shut_out};
use basin_node::etcd;
use basin_node::pki::Credentials;
use basin_store::{EtcdStore, Store, records};
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::ServeArgs;
use super::seat::ANSWER_FIRST;
use super::state::ASK_EVERY;

/// Has this server leave the cluster once it was removed.
#[derive(Clone)]
pub struct Leaver {
    pub app: Arc<App>,
    pub host: HostId,
    pub dir: ClusterDir,
    pub again: Arc<Notify>,
}

impl Leaver {
    /// As the store says.
    pub async fn when_removed(self, stop: CancellationToken) {
        let mut changes = self.app.inventory().changes();
        loop {
            if self.app.inventory().read().removed_hosts.contains_key(&self.host) && self.leave() {
                return;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
            }
        }
    }

    /// As other servers say: etcd may have shut this one out before it could read so.
    pub async fn when_shut_out(
        self,
        store: Arc<EtcdStore>,
        credentials: Credentials,
        stop: CancellationToken,
    ) {
        let mut contact = store.contact();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                lost = contact.wait_for(|c| c.lost.is_some()) => if lost.is_err() { return },
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(ASK_EVERY) => {}
            }
            let lost = contact.borrow().lost.is_some();
            let material = credentials.material();
            if lost && shut_out(&self.dir, self.host, &material).await && self.leave() {
                return;
            }
            let config = self.dir.load().ok().flatten();
            if lost
                && let Some(config) = config
                && newer_store(&self.dir, &config, self.host, &material).await.is_some()
            {
                // The next start follows it.
                return self.again.notify_one();
            }
        }
    }

    /// The next start does it. It may find no etcd that lets it in, hence the note.
    fn leave(&self) -> bool {
        info!("this server was removed from its cluster");
        match self.dir.note_removed() {
            Err(error) => warn!(%error, "cannot note that this server was removed"),
            Ok(()) => {
                let again = self.again.clone();
                // It may be the one that answers to whoever removed it.
                tokio::spawn(async move {
                    tokio::time::sleep(ANSWER_FIRST).await;
                    again.notify_one();
                });
                return true;
            }
        }
        false
    }
}

pub async fn was_removed(store: &dyn Store, host: HostId) -> anyhow::Result<bool> {
    let removed = records::get::<RemovedHost>(store, &keys::removed_host(host)).await?;
    let there = records::get::<Host>(store, &keys::host(host)).await?;
    Ok(removed.is_some() && there.is_none())
}

/// Begins anew, alone. Nobody keeps its member of etcd running any more.
pub async fn begin_anew(args: &ServeArgs, host: HostId) -> anyhow::Result<()> {
    warn!("this server was removed from its cluster, and begins anew by itself");
    let current = ClusterDir::current(&args.state_dir);
    if let Some(config) = current.load()? {
        let member = no_member(host, &config, &current);
        etcd::end(&member).await.map_err(|e| anyhow::anyhow!("{}; {}", e.detail, e.advice))?;
    }
    leave::leave(&args.state_dir, Timestamp::now())
        .context("cannot put the cluster's state aside")?;
    Ok(())
}

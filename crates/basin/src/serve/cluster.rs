//! What only a server of a cluster has and does: trust in the others, election, a
//! sign of life, care for etcd and for its own certificate.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use basin_blockd::control::Fabric;
use basin_controller::app::App;
use basin_controller::app::inventory::Inventory;
use basin_controller::app::nodes;
use basin_controller::cluster::leader::{self, Leadership};
use basin_controller::cluster::voters::Voters;
use basin_controller::cluster::{alive, drains, duty};
use basin_model::HostId;
use basin_model::task::Problem;
use basin_node::cluster::follow::Follower;
use basin_node::cluster::{ClusterDir, KnownServer};
use basin_node::etcd::{self, plan::Rules};
use basin_node::pki::{Credentials, Sign, Subject, TlsDir, keep_renewed};
use basin_node::remote::{Peers, RemoteNode};
use basin_node::{Alone, LocalNode, NodeApi};
use basin_store::{EtcdStore, Store};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::expiry::{keep_authority, note_issued, when_expired};
use super::leave::Leaver;
use super::state::MemberParts;

/// How long a daemon waits, before it serves, until the others may know that it lives.
const KNOWN_WITHIN: Duration = Duration::from_secs(2);

/// A server of a cluster, before it serves.
pub struct Member {
    pub credentials: Credentials,
    pub peers: Peers,
    pub store: Arc<EtcdStore>,
    host: HostId,
    parts: MemberParts,
    tasks: TaskTracker,
}

impl Member {
    pub fn new(parts: MemberParts, host: HostId, inventory: &Inventory) -> anyhow::Result<Member> {
        let known = inventory.clone();
        let admit = Arc::new(move |host: HostId| known.read().hosts.contains_key(&host));
        let credentials = Credentials::new(parts.material.clone(), admit)
            .context("this server's certificate cannot be used")?;
        let peers = Peers::new(credentials.clone());
        if parts.resident.is_some() {
            inventory.note_voters(&parts.voters);
        }
        let (store, tasks) = (parts.store.clone(), TaskTracker::new());
        Ok(Member { credentials, peers, store, host, parts, tasks })
    }

    /// Stands for election from now on.
    pub fn campaign(&self, store: Arc<dyn Store>, stop: &CancellationToken) -> Leadership {
        let (leadership, run) = leader::campaign(store, self.host, stop.clone());
        self.tasks.spawn(run);
        leadership
    }

    /// Says from now on that this server lives. Returns when that is known here, or the
    /// store is too slow to wait for: whoever asks this server then is not told that it
    /// does not answer.
    pub async fn announce(&self, inventory: &Inventory, stop: &CancellationToken) {
        self.tasks.spawn(alive::announce(self.store.clone(), self.host, stop.clone()));
        let known = inventory.until(|now| now.alive.contains_key(&self.host));
        let _ = tokio::time::timeout(KNOWN_WITHIN, known).await;
    }

    /// Does what a server of a cluster does, until stopped.
    pub fn serve(
        self,
        app: &Arc<App>,
        node: &Arc<LocalNode>,
        again: Arc<Notify>,
        stop: &CancellationToken,
    ) -> Duties {
        let Member { credentials, store, host, parts, tasks, .. } = self;
        let workflows = app.workflows.clone();
        tasks.spawn(duty::serve(app.leadership.clone(), workflows, stop.clone()));
        tasks.spawn(drains::keep(app.clone(), stop.clone()));
        let own_etcd = parts.resident.is_some();
        if let Some(resident) = parts.resident {
            let (trouble, troubled) = watch::channel(None);
            node.watch_trouble("etcd", troubled);
            let (voters, now) = watch::channel(parts.voters);
            tasks.spawn(note_voters(app.inventory().clone(), now));
            let follower = Follower {
                dir: parts.dir.clone(),
                config: parts.config.clone(),
                store: store.clone(),
                credentials: credentials.clone(),
                resident,
                voters,
                trouble,
                stop: stop.clone(),
            };
            tasks.spawn(follower.run());
            let voters = Voters {
                store: store.clone(),
                inventory: app.inventory().clone(),
                leadership: app.leadership.clone(),
                rules: Rules { replace_after: parts.replace_after },
                leaving: app.leaving.clone(),
            };
            tasks.spawn(voters.keep(stop.clone()));
        }
        tasks.spawn(speak_nbd(
            node.clone(),
            parts.dir.tls(),
            parts.config.advertise,
            credentials.clone(),
            stop.clone(),
        ));
        let (cert_trouble, troubled) = watch::channel(None);
        node.watch_trouble("certificate", troubled);
        let (subject, wanted) = watch::channel(subject(app, host, &credentials));
        tasks.spawn(follow_subject(app.clone(), host, credentials.clone(), subject, stop.clone()));
        let (dir, signer) = (parts.dir.tls(), Signer(app.clone()));
        let renewing =
            keep_renewed(credentials.clone(), dir, wanted, signer, cert_trouble, stop.clone());
        tasks.spawn(renewing);
        if own_etcd {
            tasks.spawn(keep_authority(app.clone(), host, parts.dir.clone(), stop.clone()));
            let expiry = when_expired(credentials.clone(), again.clone(), stop.clone());
            tasks.spawn(expiry);
        }
        tasks.spawn(note_issued(app.clone(), host, credentials.clone(), stop.clone()));
        tasks.spawn(keep_revocations(app.clone(), parts.dir.clone(), stop.clone()));
        tasks.spawn(keep_servers(app.clone(), parts.dir.clone(), stop.clone()));
        let leaver = Leaver { app: app.clone(), host, dir: parts.dir.clone(), again };
        tasks.spawn(leaver.clone().when_removed(stop.clone()));
        tasks.spawn(leaver.when_shut_out(store, credentials, stop.clone()));
        tasks.close();
        Duties(tasks)
    }
}

/// What a server of a cluster does beside serving.
pub struct Duties(TaskTracker);

impl Duties {
    /// Returns once all have ended.
    pub async fn wait(self) {
        self.0.wait().await;
    }
}

/// How this server's node finds others.
pub fn node_peers(peers: Option<Peers>, inventory: &Inventory) -> Arc<dyn basin_node::Peers> {
    match peers {
        None => Arc::new(Alone),
        Some(peers) => Arc::new(Others { peers, inventory: inventory.clone() }),
    }
}

struct Others {
    peers: Peers,
    inventory: Inventory,
}

impl basin_node::Peers for Others {
    fn get(&self, host: HostId) -> Option<Arc<dyn NodeApi>> {
        let at = {
            let snapshot = self.inventory.read();
            let host = &snapshot.hosts.get(&host)?.value;
            nodes::address(host).ok()?
        };
        Some(Arc::new(RemoteNode::new(self.peers.peer(&at))))
    }
}

/// Certificates are signed with the cluster's own key, which the store has.
struct Signer(Arc<App>);

#[async_trait]
impl Sign for Signer {
    async fn sign(&self, csr: &str, subject: &Subject) -> Result<(String, String), Problem> {
        self.0.renew_certificate(csr, subject).await
    }
}

/// As long as somebody looks.
async fn note_voters(inventory: Inventory, mut voters: watch::Receiver<etcd::Voters>) {
    while voters.changed().await.is_ok() {
        inventory.note_voters(&voters.borrow_and_update());
    }
}

/// What this server's certificate is to say.
fn subject(app: &App, host: HostId, credentials: &Credentials) -> Subject {
    let snapshot = app.inventory().read();
    let record = snapshot.hosts.get(&host).map(|h| &h.value);
    let fallback = || "server".parse().unwrap_or_else(|_| unreachable!("a constant name"));
    Subject {
        host: credentials.host(),
        name: record.map_or_else(fallback, |h| h.meta.name.clone()),
        addresses: record.and_then(|h| h.address).into_iter().collect(),
    }
}

/// A server that is renamed gets a certificate with its new name.
async fn follow_subject(
    app: Arc<App>,
    host: HostId,
    credentials: Credentials,
    wanted: watch::Sender<Subject>,
    stop: CancellationToken,
) {
    let mut changes = app.inventory().changes();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
        let now = subject(&app, host, &credentials);
        wanted.send_if_modified(|old| {
            let new = *old != now;
            old.clone_from(&now);
            new
        });
    }
}

/// Disks go from server to server by the servers' own certificates.
async fn speak_nbd(
    node: Arc<LocalNode>,
    tls: TlsDir,
    advertise: IpAddr,
    credentials: Credentials,
    stop: CancellationToken,
) {
    let mut renewed = credentials.changes();
    let fabric = Fabric {
        listen: (advertise, 0).into(),
        ca: tls.ca(),
        cert: tls.server(),
        key: tls.server(),
    };
    loop {
        node.speak_nbd(Some(&fabric)).await;
        tokio::select! {
            () = stop.cancelled() => return,
            changed = renewed.changed() => if changed.is_err() { return },
        }
    }
}

/// etcd reads the list at every handshake.
async fn keep_revocations(app: Arc<App>, dir: ClusterDir, stop: CancellationToken) {
    let mut changes = app.inventory().changes();
    let mut known = None;
    loop {
        let removed: Vec<HostId> = app.inventory().read().removed_hosts.keys().copied().collect();
        if known.as_ref() != Some(&removed) {
            let written = match app.revoked().await {
                Ok(list) => dir.store_revoked(&list).map_err(|e| e.to_string()),
                Err(problem) => Err(problem.detail),
            };
            match written {
                Ok(()) => known = Some(removed),
                Err(why) => warn!("the list of revoked certificates is not up to date: {why}"),
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

/// Whom to ask when the store does not answer.
async fn keep_servers(app: Arc<App>, dir: ClusterDir, stop: CancellationToken) {
    let mut changes = app.inventory().changes();
    let mut kept = Vec::new();
    loop {
        let servers: Vec<KnownServer> = {
            let snapshot = app.inventory().read();
            let hosts = snapshot.hosts.values();
            let addresses = hosts.filter_map(|h| nodes::address(&h.value).ok());
            addresses.map(|at| KnownServer { host: at.host, address: at.address }).collect()
        };
        if kept != servers {
            match dir.keep_servers(&servers) {
                Ok(()) => kept = servers,
                Err(error) => warn!(%error, "cannot note where the other servers are"),
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

//! Where this server's state is: a file of its own, or the cluster's etcd. What was
//! begun to change that, and cut off, is finished or undone first.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use basin_controller::app::bootstrap;
use basin_controller::app::vnis::assign_vnis;
use basin_model::cluster::ClusterRecord;
use basin_model::task::Problem;
use basin_model::{HostId, Name, keys};
use basin_node::cluster::attempt::{self, Failed, Intent};
use basin_node::cluster::{
    ClusterConfig, ClusterDir, attach, found, has_expired, newer_store, renew_expired, shut_out,
};
use basin_node::etcd::{Resident, Voters, voters};
use basin_node::pki::Material;
use basin_qemu::qemu::cgroup::Cgroups;
use basin_store::{EtcdStore, Fanout, SqliteStore, Store, StoreError, records};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::ServeArgs;

/// How often a store that does not answer is spoken of.
const SAY_EVERY: Duration = Duration::from_secs(15);
/// How often other servers are asked why it does not.
pub const ASK_EVERY: Duration = Duration::from_secs(5);

pub enum Opened {
    /// The store, and what there is besides when it is a cluster's.
    Ready(Arc<dyn Store>, Option<Box<MemberParts>>),
    /// The cluster has shut this server out.
    Removed,
    /// The daemon is to start anew.
    Again,
}

/// What makes a server one of a cluster.
pub struct MemberParts {
    pub dir: ClusterDir,
    pub config: ClusterConfig,
    pub material: Material,
    pub store: Arc<EtcdStore>,
    /// This server's member of etcd, where that is the cluster's own.
    pub resident: Option<Resident>,
    pub voters: Voters,
    /// A member of etcd that is down for so long is replaced.
    pub replace_after: Duration,
}

/// Opens the store; waits for a cluster's to answer.
pub async fn open(
    args: &ServeArgs,
    host: HostId,
    name: &Name,
    stop: &CancellationToken,
) -> anyhow::Result<Opened> {
    let state_dir = &args.state_dir;
    let (next, current) = (ClusterDir::next(state_dir), ClusterDir::current(state_dir));
    match attempt::intended(&next).context("cannot look at what was begun")? {
        Some(_) if current.exists() => attempt::discard(&next)?,
        Some(Intent::Found { attempt }) => {
            info!("this server's state moves into etcd");
            if let Err(problem) = move_in(args, host, name, &next, stop).await {
                warn!("no cluster was formed: {}", problem.detail);
                attempt::discard(&next)?;
                attempt::note_failed(state_dir, &Failed { attempt, problem })?;
            }
        }
        Some(Intent::Join { .. }) => attempt::enter(state_dir)?,
        None => {}
    }
    if current.is_removed() {
        return Ok(Opened::Removed);
    }
    match current.load()? {
        None => Ok(Opened::Ready(Arc::new(sqlite(state_dir)?), None)),
        Some(config) => cluster(args, host, name, current, config, stop).await,
    }
}

fn sqlite(state_dir: &Path) -> anyhow::Result<SqliteStore> {
    let path = state_dir.join("store.sqlite");
    SqliteStore::open(&path)
        .with_context(|| format!("cannot open the state store {}", path.display()))
}

async fn move_in(
    args: &ServeArgs,
    host: HostId,
    name: &Name,
    next: &ClusterDir,
    stop: &CancellationToken,
) -> Result<(), Problem> {
    let failed = |e: &dyn std::fmt::Display| Problem {
        code: "cluster-unfinished".to_owned(),
        detail: e.to_string(),
        advice: "See the daemon's log, then try again; nothing has changed.".to_owned(),
    };
    let from = sqlite(&args.state_dir).map_err(|e| failed(&format!("{e:#}")))?;
    records::check_schema(&from).await.map_err(|e| failed(&e))?;
    bootstrap::ensure_host(&from, host, name).await.map_err(|e| failed(&e))?;
    // Those made before networks could span servers.
    assign_vnis(&from, None).await.map_err(|e| failed(&e))?;
    found::move_in(next, host, &from, stop).await?;
    attempt::enter(&args.state_dir).map_err(|e| failed(&e))
}

async fn cluster(
    args: &ServeArgs,
    host: HostId,
    name: &Name,
    dir: ClusterDir,
    config: ClusterConfig,
    stop: &CancellationToken,
) -> anyhow::Result<Opened> {
    attempt::retire_single_store(&args.state_dir)
        .context("cannot put the single server's state aside")?;
    let material = dir.tls().load()?.context("this server's certificate is missing")?;
    let config = match newer_store(&dir, &config, host, &material).await {
        None => config,
        Some(newer) => {
            warn!("the cluster was restored from a backup elsewhere: this server follows");
            let attached = attach(&dir, &config, host, newer).await;
            attached.map_err(|e| anyhow::anyhow!("{}; {}", e.detail, e.advice))?
        }
    };
    let cgroup = Cgroups::open(&args.cgroup).ok().map(|groups| groups.service("etcd"));
    let resident = config.resident(host, &dir, cgroup, stop.clone());
    if let Some(resident) = &resident {
        // The store may need this very member to answer.
        resident.resume().await;
    }
    // An etcd of somebody else's has its own certificates: this one is renewed as usual.
    let material = match resident.is_some() && has_expired(&material, Timestamp::now()) {
        false => material,
        true => match renewed(&dir, &config, host, name, &material).await {
            Some(new) => new,
            None => return Ok(Opened::Removed),
        },
    };
    let store = Arc::new(EtcdStore::connect(&config.etcd_options(&material))?);
    info!("waiting for the cluster's store");
    let waited = tokio::select! {
        there = answer(&store, resident.is_some()) => there?,
        verdict = others_say(&dir, &config, host, &material) => return Ok(verdict),
    };
    let (record, voters) = waited;
    is_ours(record, &config)?;
    attempt::tidy(&dir).context("cannot take away what was needed to form the cluster")?;
    let replace_after = args.replace_member_after;
    // etcd tells each server of every change: once.
    let shared = Arc::new(Fanout::new(store.clone(), keys::ROOT));
    let parts = MemberParts { dir, config, material, store, resident, voters, replace_after };
    Ok(Opened::Ready(shared, Some(Box::new(parts))))
}

/// A new certificate in place of one that has expired; none: the cluster has shut this
/// server out.
async fn renewed(
    dir: &ClusterDir,
    config: &ClusterConfig,
    host: HostId,
    name: &Name,
    material: &Material,
) -> Option<Material> {
    let mut said = None;
    loop {
        if shut_out(dir, host, material).await {
            return None;
        }
        match renew_expired(dir, config, host, name, material).await {
            Ok(new) => {
                info!(until = %new.facts().not_after, "an expired certificate was replaced");
                return Some(new);
            }
            Err(problem) if said.is_none_or(|at: Instant| at.elapsed() > SAY_EVERY) => {
                warn!("{}; {}. VMs go on", problem.detail, problem.advice);
                said = Some(Instant::now());
            }
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// What the store says of the cluster, once it answers.
async fn answer(
    store: &EtcdStore,
    own: bool,
) -> Result<(Option<ClusterRecord>, Voters), StoreError> {
    let mut said = Instant::now();
    loop {
        match read(store, own).await {
            Err(error @ StoreError::Unavailable(_)) => {
                if said.elapsed() > SAY_EVERY {
                    warn!(%error, "the cluster's store does not answer yet; VMs go on");
                    said = Instant::now();
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            answered => return answered,
        }
    }
}

/// Who has a vote only etcd of the cluster's own is asked.
async fn read(store: &EtcdStore, own: bool) -> Result<(Option<ClusterRecord>, Voters), StoreError> {
    let record = records::get::<ClusterRecord>(store, &keys::cluster()).await?;
    let voters = match own {
        true => voters(&store.members().await?),
        false => Voters::new(),
    };
    Ok((record.map(|r| r.value), voters))
}

/// Returns when another server says that this one was removed, or that there is a newer
/// store: etcd would not let this server in to read so itself.
async fn others_say(
    dir: &ClusterDir,
    config: &ClusterConfig,
    host: HostId,
    material: &Material,
) -> Opened {
    loop {
        tokio::time::sleep(ASK_EVERY).await;
        if shut_out(dir, host, material).await {
            return Opened::Removed;
        }
        if newer_store(dir, config, host, material).await.is_some() {
            return Opened::Again;
        }
    }
}

/// An etcd that has lost its data begins anew, empty: nothing may be decided from that.
fn is_ours(found: Option<ClusterRecord>, config: &ClusterConfig) -> anyhow::Result<()> {
    let cluster = config.cluster;
    match found {
        Some(found) if found.id == cluster && found.epoch < config.epoch => bail!(
            "etcd holds the state from before the cluster was restored from a backup: see that \
             no etcd of that time runs on any server ('basin cluster restore' says how)"
        ),
        Some(found) if found.id == cluster => Ok(()),
        Some(found) => bail!(
            "etcd holds the state of another cluster ({}) than this server's ({cluster})",
            found.id
        ),
        None => bail!(
            "etcd answers, but holds nothing of this cluster ({cluster}): its data are lost. \
             Bring them back with 'basin cluster restore FILE', from a backup"
        ),
    }
}

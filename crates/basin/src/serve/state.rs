//! Where this server's state is: a file of its own, or the cluster's etcd. What was
//! begun to change that, and cut off, is finished or undone first.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use basin_controller::app::bootstrap;
use basin_controller::app::vnis::assign_vnis;
use basin_model::task::Problem;
use basin_model::{HostId, Name, keys};
use basin_node::cluster::attempt::{self, Failed, Intent};
use basin_node::cluster::{ClusterConfig, ClusterDir, found};
use basin_node::etcd::{Resident, Voters, voters};
use basin_node::pki::Material;
use basin_qemu::qemu::cgroup::Cgroups;
use basin_store::{EtcdStore, SqliteStore, Store, StoreError, records};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::ServeArgs;

/// How often a store that does not answer is spoken of.
const SAY_EVERY: Duration = Duration::from_secs(15);

/// The store, and what there is besides when it is a cluster's.
pub struct Opened {
    pub store: Arc<dyn Store>,
    pub member: Option<MemberParts>,
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
    match current.load()? {
        None => Ok(Opened { store: Arc::new(sqlite(state_dir)?), member: None }),
        Some(config) => cluster(args, host, current, config, stop).await,
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
    dir: ClusterDir,
    config: ClusterConfig,
    stop: &CancellationToken,
) -> anyhow::Result<Opened> {
    attempt::retire_single_store(&args.state_dir)
        .context("cannot put the single server's state aside")?;
    let material = dir.tls().load()?.context("this server's certificate is missing")?;
    let cgroup = Cgroups::open(&args.cgroup).ok().map(|groups| groups.service("etcd"));
    let resident = config.resident(host, &dir, cgroup, stop.clone());
    if let Some(resident) = &resident {
        // The store may need this very member to answer.
        resident.resume().await;
    }
    let store = Arc::new(EtcdStore::connect(&config.etcd_options(&material))?);
    let mut said = Instant::now();
    info!("waiting for the cluster's store");
    let voters = loop {
        let error = match read(&store, resident.is_some()).await {
            Ok(voters) => break voters,
            Err(error) => error,
        };
        if said.elapsed() > SAY_EVERY {
            warn!(%error, "the cluster's store does not answer yet; virtual machines go on");
            said = Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let parts = MemberParts { dir, config, material, store: store.clone(), resident, voters };
    Ok(Opened { store, member: Some(parts) })
}

/// Whether the store answers, and who has a vote in it, if it is the cluster's own.
async fn read(store: &EtcdStore, own: bool) -> Result<Voters, StoreError> {
    store.get(&keys::cluster()).await?;
    match own {
        true => store.members().await.map(|members| voters(&members)),
        false => Ok(Voters::new()),
    }
}

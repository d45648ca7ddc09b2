//! The cluster's state from a backup: a new etcd of one member, on this server. The other
//! servers find out that there is a newer one, and leave what they have (`attach`).

use std::path::{Path, PathBuf};

use basin_model::cluster::ClusterRecord;
use basin_model::host::Host;
use basin_model::keys::{self, Kind};
use basin_model::task::Problem;
use basin_model::{HostId, cluster::ExternalEtcd};
use basin_store::records::TxnBuilder;
use basin_store::{EtcdStore, records};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::config::no_member;
use super::found::{be_known, store, wait_until_up};
use super::{ClusterConfig, ClusterDir, StoreConfig};
use crate::etcd::{self, Beginning, MemberConfig};
use crate::lockfile;
use crate::problem::problem;

/// What there is again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    pub cluster: Uuid,
    /// The servers that it knows.
    pub servers: Vec<String>,
}

/// Makes the cluster's state what the backup holds. No daemon may run here, nor on the
/// other servers until this one's does again. May be cut off anywhere and begun anew.
pub async fn restore(state_dir: &Path, host: HostId, backup: &Path) -> Result<Restored, Problem> {
    let _lock = lockfile::claim(state_dir)?;
    let dir = ClusterDir::current(state_dir);
    let config = dir.load().map_err(|e| unusable(&dir, &e))?.ok_or_else(|| {
        let detail = format!("{} belongs to no cluster", state_dir.display());
        problem("no-cluster", detail, "restore on a server that was one of the cluster's")
    })?;
    if let StoreConfig::External(ExternalEtcd { endpoints, .. }) = &config.store {
        let detail =
            format!("the state is in an etcd of somebody else's: {}", endpoints.join(", "));
        return Err(problem("restore-refused", detail, "restore that etcd with its own tools"));
    }
    let endpoints = vec![config.own_endpoint()];
    let mut new = ClusterConfig { store: StoreConfig::Own { endpoints }, ..config };
    let token = Uuid::now_v7().to_string();
    let beginning = Beginning::New { token: token.clone() };
    let member = MemberConfig { beginning, ..no_member(host, &new, &dir) };
    etcd::end(&member).await?;
    etcd::restore(&member, backup).await?;
    let settled = settle(&dir, &mut new, host, token).await;
    if settled.is_err() {
        put_back(&member);
        return settled;
    }
    dir.store(&new).map_err(|e| unusable(&dir, &e))?;
    settled
}

/// Has the restored member say that it is the newest, and the only one.
async fn settle(
    dir: &ClusterDir,
    config: &mut ClusterConfig,
    host: HostId,
    token: String,
) -> Result<Restored, Problem> {
    let material = dir.tls().load().map_err(|e| unusable(dir, &e))?;
    let material = material.ok_or_else(|| unusable(dir, &"no certificate"))?;
    let resident = config.resident(host, dir, None, CancellationToken::new());
    let resident = resident.ok_or_else(|| unusable(dir, &"no etcd of its own"))?;
    let member = resident.begin(token).await?;
    let done = async {
        let to = EtcdStore::connect(&config.etcd_options(&material)).map_err(|e| store(&e))?;
        wait_until_up(&to, Some(&member)).await?;
        let restored = newest(&to, config, host).await?;
        be_known(&to, &resident).await.map(|()| restored)
    };
    let done = done.await;
    member.shut_down().await?;
    done
}

async fn newest(
    to: &EtcdStore,
    config: &mut ClusterConfig,
    host: HostId,
) -> Result<Restored, Problem> {
    let there = records::get::<ClusterRecord>(to, &keys::cluster()).await.map_err(|e| store(&e))?;
    let Some(there) = there.filter(|c| c.value.id == config.cluster) else {
        let detail = format!("the backup is not of this server's cluster ({})", config.cluster);
        return Err(problem("restore-refused", detail, "use a backup of this cluster"));
    };
    let (hosts, _) =
        records::list::<Host>(to, &Kind::Host.prefix()).await.map_err(|e| store(&e))?;
    if !hosts.iter().any(|h| h.value.id == host) {
        let detail = "this server had not joined when the backup was made".to_owned();
        return Err(problem("restore-refused", detail, "restore on one that had"));
    }
    config.epoch = config.epoch.max(there.value.epoch) + 1;
    let record = ClusterRecord { epoch: config.epoch, ..there.value.clone() };
    TxnBuilder::new().replace(&there, &record).commit(to).await.map_err(|e| {
        problem("restore-failed", format!("etcd refused: {e}"), "try again, with the same backup")
    })?;
    let servers = hosts.into_iter().map(|h| h.value.meta.name.to_string()).collect();
    Ok(Restored { cluster: config.cluster, servers })
}

/// What the member held before. Best effort: the backup is still there in any case.
fn put_back(member: &MemberConfig) {
    let aside: PathBuf = member.dir.join("data.before-restore");
    if aside.exists() {
        let put = std::fs::remove_dir_all(member.data_dir())
            .and_then(|()| std::fs::rename(&aside, member.data_dir()));
        if let Err(error) = put {
            tracing::warn!(%error, "what was there before stays in {}", aside.display());
        }
    }
}

fn unusable(dir: &ClusterDir, why: &dyn std::fmt::Display) -> Problem {
    let detail = format!("{}: {why}", dir.path().display());
    problem("state-dir-unusable", detail, "check the file system")
}

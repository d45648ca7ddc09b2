//! A server whose cluster was restored elsewhere leaves the etcd that it knows for the
//! newer one: the operator has decided which is right.

use std::time::Duration;

use basin_model::HostId;
use basin_model::task::Problem;

use super::config::no_member;
use super::wire::StoreSeen;
use super::{ClusterConfig, ClusterDir, StoreConfig};
use crate::etcd;
use crate::pki::Material;
use crate::problem::problem;
use crate::remote::{Peer, ask_for_store};

/// Servers that are up answer at once; a start does not wait long for the others.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// The newest store that another server knows of, if it is newer than this one's.
pub async fn newer_store(
    dir: &ClusterDir,
    config: &ClusterConfig,
    host: HostId,
    material: &Material,
) -> Option<StoreSeen> {
    let StoreConfig::Own { .. } = config.store else { return None };
    let asked = dir.known_servers().into_iter().filter(|s| s.host != host).map(|server| {
        let pins = material.bundle().fingerprints();
        async move {
            for pin in pins {
                let peer = Peer::pinned(&server.address.to_string(), pin);
                let answer = tokio::time::timeout(ANSWER_WITHIN, ask_for_store(&peer)).await;
                if let Ok(Ok(seen)) = answer {
                    return Some(seen);
                }
            }
            None
        }
    });
    let seen = futures::future::join_all(asked).await.into_iter().flatten();
    let newer = seen.filter(|s| s.epoch > config.epoch && !s.endpoints.is_empty());
    newer.max_by_key(|s| s.epoch)
}

/// Uses that store from now on. What this server's member held is put aside.
pub async fn attach(
    dir: &ClusterDir,
    config: &ClusterConfig,
    host: HostId,
    seen: StoreSeen,
) -> Result<ClusterConfig, Problem> {
    let member = no_member(host, config, dir);
    etcd::end(&member).await?;
    let failed = |e: std::io::Error| {
        let detail = format!("{}: {e}", dir.path().display());
        problem("state-dir-unusable", detail, "check the file system, then restart the daemon")
    };
    let (data, aside) = (member.data_dir(), member.dir.join("data.before-restore"));
    if data.exists() {
        if aside.exists() {
            std::fs::remove_dir_all(&aside).map_err(failed)?;
        }
        std::fs::rename(&data, &aside).map_err(failed)?;
    }
    let store = StoreConfig::Own { endpoints: seen.endpoints };
    let new = ClusterConfig { store, epoch: seen.epoch, ..config.clone() };
    dir.store(&new).map_err(failed)?;
    Ok(new)
}

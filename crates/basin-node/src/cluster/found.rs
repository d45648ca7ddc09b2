//! The first server of a cluster: what a single server's SQLite holds moves into etcd.
//!
//! ```text
//! prepare   while the daemon serves: CA, certificates and settings into cluster.next
//! move_in   at the next start, with nobody writing: a first member of etcd is started
//!           in cluster.next, everything copied into it, checked, and the member ended
//! enter     cluster.next becomes cluster (`attempt::enter`): from here on it counts
//! ```
//!
//! Cut off anywhere before the last step, the server is single as before.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use basin_model::cluster::{Authority, ClusterRecord, ExternalEtcd, Issued};
use basin_model::host::Host;
use basin_model::task::Problem;
use basin_model::{HostId, Name, keys};
use basin_store::records::TxnBuilder;
use basin_store::{EtcdStore, Store, StoreError, copy_all, records};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::attempt::{self, Intent};
use super::config::external_options;
use super::{ClusterConfig, ClusterDir, KeptAuthority, StoreConfig};
use crate::etcd::{EtcdMember, Resident};
use crate::fault::point;
use crate::files;
use crate::pki::{ClusterCa, Material, PkiError, Subject, request};
use crate::problem::problem;

/// How long a new etcd has to come up.
const UP_WITHIN: Duration = Duration::from_secs(40);

/// What the operator wants.
#[derive(Debug, Clone)]
pub struct Found {
    pub host: HostId,
    pub name: Name,
    pub advertise: IpAddr,
    pub api_port: u16,
    pub external: Option<ExternalEtcd>,
    /// A year, where none is given.
    pub certificate_life: Option<Duration>,
}

/// Makes everything that can be made while the daemon serves. With the intent noted,
/// the next start goes on.
pub fn prepare(next: &ClusterDir, found: &Found, id: Uuid) -> Result<(), Problem> {
    let now = Timestamp::now();
    attempt::discard(next).map_err(|e| unwritable(next, &e))?;
    let ca = ClusterCa::create("Basin cluster", now).map_err(|e| unmade(&e))?;
    let subject =
        Subject { host: found.host, name: found.name.clone(), addresses: vec![found.advertise] };
    let (key, csr) = request(&subject).map_err(|e| unmade(&e))?;
    // The CA's key is here only until the store has it.
    let authority = KeptAuthority {
        authority: Authority { certificate: ca.certificate_pem(), key: ca.key_pem() },
        certificate_life: found.certificate_life,
    };
    let life = authority.life();
    let chain = ca.sign_for(&csr, &subject, life, now).map_err(|e| unmade(&e))?;
    let material = Material::parse(&chain, &key, &ca.certificate_pem()).map_err(|e| unmade(&e))?;
    let cluster = Uuid::now_v7();
    let store = match &found.external {
        Some(external) => StoreConfig::External(external.clone()),
        None => StoreConfig::Own { endpoints: Vec::new() },
    };
    let (advertise, api_port) = (found.advertise, found.api_port);
    let mut config = ClusterConfig { cluster, advertise, api_port, epoch: 0, store };
    let own = config.own_endpoint();
    if let StoreConfig::Own { endpoints } = &mut config.store {
        endpoints.push(own);
    }
    next.tls().store(&material).map_err(|e| unmade(&e))?;
    let list = ca.revocations(&[], 1, now).map_err(|e| unmade(&e))?;
    let write = || {
        next.store_revoked(&list)?;
        next.store(&config)?;
        let text = serde_json::to_vec(&authority).map_err(std::io::Error::other)?;
        files::write(&next.path().join(attempt::AUTHORITY), &text, 0o600, None)?;
        point("init/intent/before");
        attempt::intend(next, &Intent::Found { attempt: id })
    };
    write().map_err(|e| unwritable(next, &e))?;
    point("init/intent/after");
    Ok(())
}

/// Moves the single server's records in. Nobody may write to `from` meanwhile.
pub async fn move_in(
    next: &ClusterDir,
    host: HostId,
    from: &dyn Store,
    stop: &CancellationToken,
) -> Result<(), Problem> {
    let unreadable = |e: &dyn std::fmt::Display| {
        let advice = "form the cluster anew ('basin init')";
        problem("cluster-unfinished", format!("{}: {e}", next.path().display()), advice)
    };
    let config = next.load().map_err(|e| unreadable(&e))?.ok_or_else(|| unreadable(&"empty"))?;
    let material = next.tls().load().map_err(|e| unreadable(&e))?;
    let material = material.ok_or_else(|| unreadable(&"no certificate"))?;
    let authority = next.path().join(attempt::AUTHORITY);
    let kept: KeptAuthority = std::fs::read(&authority)
        .map_err(|e| unreadable(&e))
        .and_then(|text| serde_json::from_slice(&text).map_err(|e| unreadable(&e)))?;
    let resident = config.resident(host, next, None, stop.clone());
    let member = match &resident {
        None => None,
        Some(resident) => {
            // What an attempt left that was cut off is of no use; its process may run.
            resident.clear_all().await?;
            Some(resident.begin(config.cluster.to_string()).await?)
        }
    };
    let options = config.etcd_options(&material);
    let moved = async {
        let to = EtcdStore::connect(&options).map_err(|e| store(&e))?;
        wait_until_up(&to, member.as_ref()).await?;
        point("init/copy/before");
        if !settled(&to, &config).await? {
            copy_all(from, &to, &|_| true).await.map_err(|e| store(&e))?;
            point("init/copy/after");
            settle(&to, &config, host, &material, &kept).await?;
        }
        point("init/settle/after");
        match &resident {
            Some(resident) => be_known(&to, resident).await,
            None => Ok(()),
        }
    };
    let moved: Result<(), Problem> = moved.await;
    match (&member, &moved) {
        (None, _) => {}
        // It begins again where the directory is then, with what it holds.
        (Some(member), Ok(())) => member.shut_down().await?,
        (Some(_), Err(_)) => {
            if let Some(resident) = &resident {
                resident.clear_all().await?;
            }
        }
    }
    moved
}

/// Whether the copy was finished before, by a daemon that then died. An etcd of
/// somebody else's may hold another cluster of Basin.
async fn settled(to: &dyn Store, config: &ClusterConfig) -> Result<bool, Problem> {
    let there = records::get::<ClusterRecord>(to, &keys::cluster()).await.map_err(|e| store(&e))?;
    match there {
        Some(there) if there.value.id != config.cluster => Err(problem(
            "etcd-in-use",
            format!("that etcd holds the state of another cluster of Basin ({})", there.value.id),
            "join that cluster ('basin join'), or name another etcd; one that is of no use any more \
             is emptied with 'etcdctl del --prefix /basin/'",
        )),
        there => Ok(there.is_some()),
    }
}

/// Notes whose data these are, before they move.
pub(super) async fn be_known(to: &EtcdStore, resident: &Resident) -> Result<(), Problem> {
    let members = to.members().await.map_err(|e| store(&e))?;
    resident.tend(&members).await.map(drop)
}

/// What only a cluster has.
async fn settle(
    to: &dyn Store,
    config: &ClusterConfig,
    host: HostId,
    material: &Material,
    kept: &KeptAuthority,
) -> Result<(), Problem> {
    let now = Timestamp::now();
    let failed = |e: StoreError| store(&e);
    let external_etcd = match &config.store {
        StoreConfig::External(external) => Some(external.clone()),
        StoreConfig::Own { .. } => None,
    };
    let record = ClusterRecord {
        id: config.cluster,
        formed_at: now,
        epoch: 0,
        external_etcd,
        certificate_life: kept.certificate_life,
    };
    let own = records::get::<Host>(to, &keys::host(host)).await.map_err(failed)?;
    let own = own.ok_or_else(|| {
        let advice = "restart the daemon, then try again";
        problem("cluster-unfinished", "this server's own record is missing".to_owned(), advice)
    })?;
    let new = Host {
        address: Some(config.advertise),
        api_port: Some(config.api_port),
        ..own.value.clone()
    };
    let issued = Issued {
        host,
        serial: material.facts().serial.clone(),
        expires_at: material.facts().not_after,
    };
    let txn = TxnBuilder::new()
        .put(keys::cluster(), &record)
        .put(keys::authority(), &kept.authority)
        .put(keys::issued(&issued.serial), &issued)
        .replace(&own, &new);
    txn.commit(to).await.map(drop).map_err(|e| {
        let advice = "try again; nothing has changed on this server";
        problem("cluster-unfinished", format!("the store refused: {e}"), advice)
    })
}

pub(super) async fn wait_until_up(
    to: &EtcdStore,
    member: Option<&EtcdMember>,
) -> Result<(), Problem> {
    let began = Instant::now();
    loop {
        match to.get(&keys::cluster()).await {
            Ok(_) => return Ok(()),
            Err(error) if began.elapsed() > UP_WITHIN => {
                let said = member.and_then(|m| m.state().borrow().problem.clone());
                return Err(said.unwrap_or_else(|| store(&error)));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Whether this server can run etcd at all, before anything is begun.
pub fn etcd_is_there() -> Result<(), Problem> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|dir| dir.join("etcd").is_file()) {
        return Ok(());
    }
    let advice = "install it (apt install etcd-server; Basin runs it, so disable its own service)";
    Err(problem("program-missing", "etcd is not installed here".to_owned(), advice))
}

/// Whether an etcd of somebody else's can be used, before anything is begun.
pub async fn try_external(external: &ExternalEtcd) -> Result<(), Problem> {
    let to = EtcdStore::connect(&external_options(external)).map_err(|e| store(&e))?;
    to.get(&keys::cluster()).await.map(drop).map_err(|e| store(&e))
}

pub(super) fn store(error: &StoreError) -> Problem {
    let advice = "see that etcd runs and is reached (etcd.log in the cluster's directory, where \
                  Basin runs it); nothing has changed on this server";
    problem("store-unavailable", error.to_string(), advice)
}

fn unmade(error: &PkiError) -> Problem {
    problem("certificate", error.to_string(), "see the daemon's log")
}

fn unwritable(next: &ClusterDir, error: &std::io::Error) -> Problem {
    let detail = format!("cannot write to {}: {error}", next.path().display());
    problem("state-unwritable", detail, "check the state directory's file system")
}

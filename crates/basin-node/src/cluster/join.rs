//! A server asks a cluster to take it in. Everything that can be refused is refused
//! while the daemon still serves as a single one.

use std::time::Duration;

use basin_model::cluster::ExternalEtcd;
use basin_model::host::QemuInfo;
use basin_model::task::Problem;
use basin_model::{HostId, Name};
use jiff::Timestamp;
use uuid::Uuid;

use super::attempt::{self, Intent};
use super::wire::{JoinAnswer, JoinAsk, JoinStore, JoinToken, OwnDatastore};
use super::{ClusterConfig, ClusterDir, StoreConfig};
use crate::fault::point;
use crate::pki::{Fingerprint, Material, Subject, request};
use crate::problem::problem;
use crate::remote::{Peer, ask_to_join};

const ANSWER_WITHIN: Duration = Duration::from_secs(40);

/// What the operator wants.
#[derive(Debug, Clone)]
pub struct Join {
    /// `HOST:PORT` of a server of the cluster.
    pub authority: String,
    pub token: JoinToken,
    pub host: HostId,
    pub name: Name,
    pub advertise: std::net::IpAddr,
    pub api_port: u16,
    pub qemu: QemuInfo,
    pub datastores: Vec<OwnDatastore>,
}

/// Asks, and keeps the answer. With the intent noted, the next start is a cluster's.
pub async fn join(next: &ClusterDir, join: &Join, attempt: Uuid) -> Result<(), Problem> {
    let pin: Fingerprint = join.token.ca.parse().map_err(|_| {
        let advice = "copy the token whole, as 'basin token create --join' printed it";
        problem("join-refused", "the token is damaged".to_owned(), advice)
    })?;
    let failed = |e: &dyn std::fmt::Display| {
        problem("certificate", e.to_string(), "see the daemon's log on both servers")
    };
    let subject =
        Subject { host: join.host, name: join.name.clone(), addresses: vec![join.advertise] };
    let (key, csr) = request(&subject).map_err(|e| failed(&e))?;
    let ask = JoinAsk {
        token: join.token.id,
        secret: join.token.secret.clone(),
        host: join.host,
        name: join.name.clone(),
        address: join.advertise,
        api_port: join.api_port,
        csr,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        qemu: match &join.qemu {
            QemuInfo::Usable { version, .. } => Some(version.clone()),
            QemuInfo::Unusable { .. } => None,
        },
        clock: Timestamp::now(),
        datastores: join.datastores.clone(),
    };
    let peer = Peer::pinned(&join.authority, pin);
    let answered = tokio::time::timeout(ANSWER_WITHIN, ask_to_join(&peer, &ask)).await;
    let answer: JoinAnswer = answered
        .map_err(|_| {
            let detail = format!("{} does not answer", peer.server());
            problem("host-unreachable", detail, "see that server's log, then join again")
        })?
        .map_err(|e| e.0)?;
    point("join/answer/after");
    let material = Material::parse(&answer.chain, &key, &answer.bundle).map_err(|e| failed(&e))?;
    if !material.bundle().contains(pin) {
        return Err(failed(&"the cluster's answer is of another CA than the token names"));
    }
    keep(next, join, &answer, &material, attempt).map_err(|e| {
        let detail = format!("cannot write to {}: {e}", next.path().display());
        problem(
            "state-unwritable",
            detail,
            "check the file system; then join again, with the same token",
        )
    })?;
    point("join/intent/after");
    Ok(())
}

fn keep(
    next: &ClusterDir,
    join: &Join,
    answer: &JoinAnswer,
    material: &Material,
    attempt: Uuid,
) -> std::io::Result<()> {
    attempt::discard(next)?;
    let store = match &answer.store {
        JoinStore::Own { endpoints } => StoreConfig::Own { endpoints: endpoints.clone() },
        JoinStore::External(external) => StoreConfig::External(ExternalEtcd::clone(external)),
    };
    let config = ClusterConfig {
        cluster: answer.cluster,
        advertise: join.advertise,
        api_port: join.api_port,
        epoch: answer.epoch,
        store,
    };
    next.tls().store(material).map_err(std::io::Error::other)?;
    next.store_revoked(&answer.revoked)?;
    next.store(&config)?;
    attempt::intend(next, &Intent::Join { attempt })
}

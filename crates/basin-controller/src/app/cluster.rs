//! The cluster: forming it, joining one, letting servers in.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use basin_api::cluster::{ClusterCreate, ClusterJoin, JoinTokenCreate};
use basin_model::cluster::{ExternalEtcd, JoinToken};
use basin_model::datastore::{DatastoreKind, DatastoreState, Sharing};
use basin_model::host::QemuInfo;
use basin_model::keys;
use basin_model::task::Problem;
use basin_model::{HostId, Name, TokenId};
use basin_node::cluster::found::{Found, try_external};
use basin_node::cluster::join::Join;
use basin_node::cluster::wire::{JoinAnswer, JoinAsk, JoinStore, JoinToken as Token, OwnDatastore};
use basin_node::pki::Subject;
use basin_store::records::TxnBuilder;
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::certificates::sign;
use super::inventory::Snapshot;
use super::token::{hash, new_secret};
use super::{App, problems};
use crate::cluster::leader::Lead;
use crate::intake::admission::admit;

const TOKEN_LIFE: u64 = 3600;
const TOKEN_LIFE_MAX: u64 = 7 * 24 * 3600;

impl App {
    /// Makes this server the first of a cluster. The daemon restarts in the course of it.
    pub async fn form_cluster(&self, create: &ClusterCreate) -> Result<Uuid, Problem> {
        self.be_single()?;
        let (advertise, api_port) = self.advertised(&create.advertise)?;
        let external = create.etcd.as_ref().map(external).transpose()?;
        if let Some(external) = &external {
            try_external(external).await?;
        }
        let certificate_life = create.certificate_life_seconds.map(certificate_life).transpose()?;
        let (host, name) = self.own();
        let found = Found { host, name, advertise, api_port, external, certificate_life };
        self.seat.found(found).await
    }

    /// Has this server join a cluster. It must have nothing that the cluster would not have.
    pub async fn join_cluster(&self, join: &ClusterJoin) -> Result<Uuid, Problem> {
        self.be_single()?;
        let (advertise, api_port) = self.advertised(&join.advertise)?;
        let token: Token =
            join.token.parse().map_err(|why| problems::join_refused(why, "Copy it whole."))?;
        let authority = authority(&join.url)?;
        let (host, name) = self.own();
        let request = {
            let snapshot = self.inventory().read();
            empty(&snapshot)?;
            let status = snapshot.host_statuses.get(&host);
            let unknown = || QemuInfo::Unusable { reason: "not known yet".to_owned() };
            let qemu = status.map_or_else(unknown, |s| s.value.qemu.clone());
            let datastores = own_datastores(&snapshot);
            Join { authority, token, host, name, advertise, api_port, qemu, datastores }
        };
        self.seat.join(request).await
    }

    fn own(&self) -> (HostId, Name) {
        let host = self.nodes().local();
        let snapshot = self.inventory().read();
        let name = snapshot.hosts.get(&host).map(|h| h.value.meta.name.clone());
        let fallback = || "server".parse().unwrap_or_else(|_| unreachable!("a constant name"));
        (host, name.unwrap_or_else(fallback))
    }

    fn be_single(&self) -> Result<(), Problem> {
        match self.leadership.now() {
            Lead::Alone => Ok(()),
            _ => Err(problems::wrong_state(
                "server",
                &self.own().1,
                "one of a cluster already",
                "'basin host list' shows the cluster; 'basin host remove' takes a server out.",
            )),
        }
    }

    /// The address that others are told, which must be one of this server's.
    fn advertised(&self, text: &str) -> Result<(IpAddr, u16), Problem> {
        let bad = |why: &str| problems::invalid(format!("advertise: '{text}' {why}"));
        let address: IpAddr = text.parse().map_err(|_| bad("is not an IP address"))?;
        if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
            return Err(bad("is not where another server could reach this one"));
        }
        // Whoever may bind it has it.
        std::net::TcpListener::bind(SocketAddr::new(address, 0))
            .map_err(|e| bad(&format!("is not an address of this server ({e})")))?;
        let port = self.seat.api_port().ok_or_else(|| {
            problems::invalid(
                "servers reach each other over HTTPS, which is turned off here ('--listen none')",
            )
        })?;
        Ok((address, port))
    }

    /// Makes a token that lets one server join. It is in the answer and nowhere else.
    pub async fn create_join_token(
        &self,
        create: &JoinTokenCreate,
    ) -> Result<(String, Timestamp), Problem> {
        let life = create.expires_in_seconds.unwrap_or(TOKEN_LIFE);
        if life == 0 || life > TOKEN_LIFE_MAX {
            return Err(problems::invalid("expires_in_seconds: it is from 1 to a week"));
        }
        let (_, ca) = self.signer().await?;
        // Of the same kind as other secrets, without their mark.
        let secret = new_secret().trim_start_matches("basin_").to_owned();
        let id = Uuid::now_v7();
        let expires_at = self
            .commit(|snapshot, mint| {
                let expires_at = mint.now + SignedDuration::from_secs(life as i64);
                let record = JoinToken {
                    id: TokenId::from_uuid(id),
                    secret_sha256: hash(&secret),
                    created_at: mint.now,
                    expires_at,
                    used_by: None,
                };
                let mut txn = TxnBuilder::new().create(keys::join_token(record.id), &record);
                // What expired long ago explains nothing to anybody any more.
                let old = mint.now - SignedDuration::from_hours(24);
                let gone = snapshot.join_tokens.values().filter(|t| t.value.expires_at < old);
                for gone in gone.take(50) {
                    txn = txn.delete(keys::join_token(gone.value.id));
                }
                Ok((expires_at, txn))
            })
            .await?;
        let token = Token { id, secret, ca: ca.fingerprint().to_string() };
        Ok((token.to_string(), expires_at))
    }

    /// Lets a server in, if its token says so.
    pub async fn admit(&self, ask: &JoinAsk) -> Result<JoinAnswer, Problem> {
        let (kept, ca) = self.signer().await?;
        let record = self.cluster_record().await?;
        let subject =
            Subject { host: ask.host, name: ask.name.clone(), addresses: vec![ask.address] };
        let (chain, issued) = sign(&ca, &ask.csr, &subject, kept.life())?;
        self.commit(|snapshot, mint| {
            let txn = admit(ask, env!("CARGO_PKG_VERSION"), snapshot, mint.now)?;
            Ok(((), txn.create(keys::issued(&issued.serial), &issued)))
        })
        .await?;
        tracing::info!(host = %ask.host, name = %ask.name, "a server has joined");
        let store = match record.external_etcd {
            Some(external) => JoinStore::External(external),
            None => JoinStore::Own { endpoints: self.store_endpoints() },
        };
        Ok(JoinAnswer {
            cluster: record.id,
            chain,
            bundle: ca.certificate_pem(),
            revoked: self.revocations(&ca)?,
            epoch: record.epoch,
            store,
        })
    }

    pub fn store_endpoints(&self) -> Vec<String> {
        let snapshot = self.inventory().read();
        snapshot.voters.values().flatten().cloned().collect()
    }

    /// Everything that etcd holds, as a file that `basin cluster restore` reads.
    pub async fn backup(&self) -> Result<std::fs::File, Problem> {
        self.seat.backup().await
    }
}

/// Shorter ones than a minute would be renewed all the time, and longer ones outlive the CA.
fn certificate_life(seconds: u64) -> Result<Duration, Problem> {
    if (60..=3650 * 24 * 3600).contains(&seconds) {
        return Ok(Duration::from_secs(seconds));
    }
    Err(problems::invalid("certificate_life_seconds: it is from a minute to ten years"))
}

fn external(etcd: &basin_api::cluster::ExternalEtcd) -> Result<ExternalEtcd, Problem> {
    let identity = match (&etcd.certificate, &etcd.key) {
        (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
        (None, None) => None,
        _ => return Err(problems::invalid("etcd: certificate and key go together")),
    };
    if etcd.endpoints.is_empty() {
        return Err(problems::invalid("etcd: no endpoint is given"));
    }
    Ok(ExternalEtcd { endpoints: etcd.endpoints.clone(), ca: etcd.ca.clone(), identity })
}

/// `HOST:PORT` of a server's URL.
fn authority(url: &str) -> Result<String, Problem> {
    let rest = url.strip_prefix("https://").unwrap_or(url).trim_end_matches('/');
    let bad = || problems::invalid(format!("url: '{url}' is not like https://SERVER:7443"));
    let parsed: axum::http::uri::Authority = rest.parse().map_err(|_| bad())?;
    if rest.is_empty() || rest.contains(['@', '/']) {
        return Err(bad());
    }
    let port = parsed.port_u16().unwrap_or(super::nodes::API_PORT);
    Ok(format!("{}:{port}", parsed.host()))
}

/// A server that joins brings its datastores and nothing else.
fn empty(snapshot: &Snapshot) -> Result<(), Problem> {
    let count = |n: usize, what: &str| match n {
        0 => None,
        1 => Some(format!("1 {what}")),
        n => Some(format!("{n} {what}s")),
    };
    let there: Vec<String> = [
        count(snapshot.vms.len(), "VM"),
        count(snapshot.volumes.len(), "volume"),
        count(snapshot.images.len(), "image"),
    ]
    .into_iter()
    .flatten()
    .collect();
    if there.is_empty() {
        return Ok(());
    }
    Err(problems::join_refused(
        format!("it has {}, which the cluster would not know of", there.join(", ")),
        "Form the cluster on this server ('basin init') and let the others join it; or move \
         them away first.",
    ))
}

fn own_datastores(snapshot: &Snapshot) -> Vec<OwnDatastore> {
    let ready = snapshot
        .datastores
        .values()
        .map(|d| &d.value)
        .filter(|d| d.state == DatastoreState::Ready && matches!(d.sharing, Sharing::Local(_)));
    ready
        .map(|d| {
            let DatastoreKind::Dir { path } = &d.kind;
            OwnDatastore {
                id: d.id,
                name: d.meta.name.clone(),
                description: d.meta.description.clone(),
                path: path.clone(),
                quota: d.quota,
                overcommit_percent: d.overcommit_percent,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::authority;

    #[test]
    fn a_server_is_named_by_its_url() {
        let check = |url: &str, expect: Option<&str>| {
            assert_eq!(authority(url).ok().as_deref(), expect, "{url}");
        };
        check("https://10.0.0.1:7443", Some("10.0.0.1:7443"));
        check("https://srv1/", Some("srv1:7443"));
        check("[fd00::1]:1", Some("[fd00::1]:1"));
        check("https://", None);
        check("https://a/b", None);
        check("https://me@a", None);
    }
}

//! Which servers have a member of etcd: the leader takes one step after the other
//! towards what `basin_node::etcd::plan` says, and looks again after each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use basin_model::HostId;
use basin_model::cluster::StoreMember;
use basin_model::keys;
use basin_node::cluster::{ETCD_CLIENT_PORT, ETCD_PEER_PORT};
use basin_node::etcd::plan::{Candidate, Rules, Seen, Step, Verdict, next};
use basin_node::pki::Credentials;
use basin_store::etcd::{EtcdAdmin, EtcdIdentity, EtcdTls, Member};
use basin_store::records::TxnBuilder;
use basin_store::{Store, StoreError};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::leader::Leadership;
use crate::app::inventory::{Inventory, Snapshot};

const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Servers labelled so get no member: those that are often switched off, say.
pub const UNWILLING: (&str, &str) = ("basin.etcd", "never");

/// What the leader's care for etcd works with.
pub struct Voters {
    pub store: Arc<dyn Store>,
    pub inventory: Inventory,
    pub leadership: Leadership,
    pub credentials: Credentials,
    pub rules: Rules,
    pub leaving: Leaving,
}

/// Servers that are about to be removed. The leader's own knowledge: with another
/// leader they stay until somebody asks again.
#[derive(Clone, Default)]
pub struct Leaving(Arc<Mutex<BTreeSet<HostId>>>);

/// Is about to be removed for as long as this lives.
pub struct Leaves(Leaving, HostId);

impl Leaving {
    pub fn leaves(&self, host: HostId) -> Leaves {
        self.all().insert(host);
        Leaves(self.clone(), host)
    }

    fn all(&self) -> MutexGuard<'_, BTreeSet<HostId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Leaves {
    fn drop(&mut self) {
        self.0.all().remove(&self.1);
    }
}

impl Voters {
    /// Runs until stopped; does nothing while another server leads.
    pub async fn keep(self, stop: CancellationToken) {
        let mut down: BTreeMap<u64, Timestamp> = BTreeMap::new();
        let mut silent: BTreeMap<HostId, Timestamp> = BTreeMap::new();
        let mut said = String::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            if !self.leadership.leads() {
                (down, silent) = Default::default();
                continue;
            }
            let outcome = stop.run_until_cancelled(self.step(&mut down, &mut silent)).await;
            match outcome {
                Some(Ok(verdict)) if verdict.why != said => {
                    tracing::info!(step = ?verdict.step, "etcd's members: {}", verdict.why);
                    said = verdict.why;
                }
                Some(Ok(_)) | None => {}
                Some(Err(error)) => tracing::debug!(%error, "etcd's members cannot be cared for"),
            }
        }
    }

    async fn step(
        &self,
        down: &mut BTreeMap<u64, Timestamp>,
        silent: &mut BTreeMap<HostId, Timestamp>,
    ) -> Result<Verdict, StoreError> {
        let now = Timestamp::now();
        let (hosts, records, urls) = {
            let snapshot = self.inventory.read();
            let records: BTreeMap<HostId, StoreMember> =
                snapshot.store_members.values().map(|m| (m.value.host, m.value.clone())).collect();
            let urls: Vec<String> = records.values().map(|m| m.client_url.clone()).collect();
            (candidates(&snapshot, &self.leaving.all(), silent, now), records, urls)
        };
        let tls = self.tls();
        let admin = EtcdAdmin::new(&urls, Some(&tls))?;
        let members = admin.members().await?;
        let mut seen = Vec::new();
        for member in &members {
            seen.push(self.look(member, &records, &tls, down, now).await);
        }
        down.retain(|id, _| members.iter().any(|m| m.id == *id));
        let verdict = next(&hosts, &seen, self.rules, now);
        self.take(&verdict, &admin, &members, &seen, &records, &tls).await?;
        Ok(verdict)
    }

    /// How a member is.
    async fn look(
        &self,
        member: &Member,
        records: &BTreeMap<HostId, StoreMember>,
        tls: &EtcdTls,
        down: &mut BTreeMap<u64, Timestamp>,
        now: Timestamp,
    ) -> Seen {
        let record = records.values().find(|r| member.peer_urls.contains(&r.peer_url));
        let status = match member.client_urls.is_empty() {
            true => None,
            false => match EtcdAdmin::new(&member.client_urls, Some(tls)) {
                Ok(own) => own.status().await.ok(),
                Err(_) => None,
            },
        };
        let leader = status.as_ref().is_some_and(|s| s.leader == Some(member.id));
        let down_since = match (&status, record) {
            (Some(_), _) => {
                down.remove(&member.id);
                None
            }
            // Not started yet: it counts from when it was added.
            (None, Some(record)) if !member.started() => Some(record.since),
            (None, _) => Some(*down.entry(member.id).or_insert(now)),
        };
        let (id, learner) = (member.id, member.learner);
        Seen { id, host: record.map(|r| r.host), learner, leader, down_since }
    }

    async fn take(
        &self,
        verdict: &Verdict,
        admin: &EtcdAdmin,
        members: &[Member],
        seen: &[Seen],
        records: &BTreeMap<HostId, StoreMember>,
        tls: &EtcdTls,
    ) -> Result<(), StoreError> {
        match verdict.step {
            Step::Wait | Step::Settled => self.forget_absent(members, records).await,
            Step::AddLearner(host) => self.add(host, admin).await,
            Step::Promote(id) => admin.promote(id).await.map(drop),
            Step::Remove(id) => {
                admin.remove(id).await?;
                match seen.iter().find(|m| m.id == id).and_then(|m| m.host) {
                    Some(host) => self.delete(host).await,
                    None => Ok(()),
                }
            }
            Step::MoveLeader(to) => {
                let leader = seen.iter().find(|m| m.leader).map(|m| m.id);
                let leader = members.iter().find(|m| Some(m.id) == leader);
                match leader {
                    Some(leader) => {
                        EtcdAdmin::new(&leader.client_urls, Some(tls))?.move_leader(to).await
                    }
                    None => Ok(()),
                }
            }
        }
    }

    /// The member first, its record then: a server never starts a member that the
    /// others have not been told of.
    async fn add(&self, host: HostId, admin: &EtcdAdmin) -> Result<(), StoreError> {
        let address = {
            let snapshot = self.inventory.read();
            snapshot.hosts.get(&host).and_then(|h| h.value.address)
        };
        let Some(address) = address else { return Ok(()) };
        let url = |port: u16| format!("https://{}", std::net::SocketAddr::new(address, port));
        let peer_url = url(ETCD_PEER_PORT);
        admin.add_learner(&peer_url).await?;
        let others = admin.members().await?;
        let others = others.into_iter().filter(|m| m.started() && !m.peer_urls.contains(&peer_url));
        let others =
            others.map(|m| (m.name, m.peer_urls.first().cloned().unwrap_or_default())).collect();
        let client_url = url(ETCD_CLIENT_PORT);
        let record = StoreMember { host, client_url, peer_url, others, since: Timestamp::now() };
        let guard = self.leadership.guard().map_err(|_| no_longer())?;
        let txn = TxnBuilder::new().put(keys::store_member(host), &record).and(guard);
        txn.commit(&*self.store).await.map(drop).map_err(refused)
    }

    /// What an earlier leader removed from etcd, and not from the records.
    async fn forget_absent(
        &self,
        members: &[Member],
        records: &BTreeMap<HostId, StoreMember>,
    ) -> Result<(), StoreError> {
        let there = |r: &StoreMember| members.iter().any(|m| m.peer_urls.contains(&r.peer_url));
        match records.values().find(|r| !there(r)) {
            Some(record) => self.delete(record.host).await,
            None => Ok(()),
        }
    }

    async fn delete(&self, host: HostId) -> Result<(), StoreError> {
        let guard = self.leadership.guard().map_err(|_| no_longer())?;
        let txn = TxnBuilder::new().delete(keys::store_member(host)).and(guard);
        txn.commit(&*self.store).await.map(drop).map_err(refused)
    }

    fn tls(&self) -> EtcdTls {
        let material = self.credentials.material();
        EtcdTls {
            ca: material.bundle().pem().into_bytes(),
            identity: Some(EtcdIdentity {
                certificate: material.chain_pem().as_bytes().to_vec(),
                key: material.key_pem().as_bytes().to_vec(),
            }),
        }
    }
}

/// Those that were in the cluster first come first: they stay where they are.
fn candidates(
    snapshot: &Snapshot,
    leaving: &BTreeSet<HostId>,
    silent: &mut BTreeMap<HostId, Timestamp>,
    now: Timestamp,
) -> Vec<Candidate> {
    let mut hosts: Vec<_> = snapshot.hosts.values().map(|h| &h.value).collect();
    hosts.sort_by_key(|h| (h.meta.created_at, h.id));
    silent.retain(|host, _| snapshot.hosts.contains_key(host));
    hosts
        .into_iter()
        .map(|host| {
            let silent_since = match snapshot.alive.contains_key(&host.id) {
                true => {
                    silent.remove(&host.id);
                    None
                }
                false => Some(*silent.entry(host.id).or_insert(now)),
            };
            let (key, value) = UNWILLING;
            let willing = host.meta.labels.get(key) != Some(value)
                && host.address.is_some()
                && !leaving.contains(&host.id);
            Candidate { host: host.id, silent_since, willing }
        })
        .collect()
}

fn no_longer() -> StoreError {
    StoreError::Unavailable("this server no longer leads".to_owned())
}

fn refused(error: basin_store::records::CommitError) -> StoreError {
    match error {
        basin_store::records::CommitError::Store(error) => error,
        basin_store::records::CommitError::Refused(_) => no_longer(),
    }
}

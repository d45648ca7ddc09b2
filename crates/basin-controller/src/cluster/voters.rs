//! Which servers have a vote in the cluster's own etcd: the leader gives the steward
//! what it knows of the servers, and lets it take one step after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use basin_model::HostId;
use basin_node::cluster::{ETCD_PEER_PORT, etcd_url};
use basin_node::etcd::Steward;
use basin_node::etcd::plan::Rules;
use basin_node::etcd::steward::Server;
use basin_store::EtcdStore;
use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use super::leader::Leadership;
use crate::app::inventory::{Inventory, Snapshot};

const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Servers labelled so get no member: those that are often switched off, say.
pub const UNWILLING: (&str, &str) = ("basin.etcd", "never");

/// What the leader's care for etcd works with.
pub struct Voters {
    pub store: Arc<EtcdStore>,
    pub inventory: Inventory,
    pub leadership: Leadership,
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
        stop.run_until_cancelled(self.step_after_step()).await;
    }

    async fn step_after_step(self) {
        let mut steward = Steward::new(self.rules);
        let mut silent = Silent::default();
        let mut said = String::new();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if !self.leadership.leads() {
                (steward, silent) = (Steward::new(self.rules), Silent::default());
                continue;
            }
            let servers = servers(&self.inventory.read(), &self.leaving.all(), &mut silent);
            match steward.step(&self.store, &servers).await {
                Ok(verdict) if verdict.why != said => {
                    tracing::info!(step = ?verdict.step, "etcd's members: {}", verdict.why);
                    said = verdict.why;
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "etcd's members cannot be cared for"),
            }
        }
    }
}

/// Since when servers were not heard of by this leader.
type Silent = BTreeMap<HostId, Instant>;

/// Those that were in the cluster first come first: they stay where they are.
fn servers(snapshot: &Snapshot, leaving: &BTreeSet<HostId>, silent: &mut Silent) -> Vec<Server> {
    let mut hosts: Vec<_> = snapshot.hosts.values().map(|h| &h.value).collect();
    hosts.sort_by_key(|h| (h.meta.created_at, h.id));
    silent
        .retain(|host, _| snapshot.hosts.contains_key(host) && !snapshot.alive.contains_key(host));
    let (instant, now) = (Instant::now(), Timestamp::now());
    let (label, never) = UNWILLING;
    hosts
        .into_iter()
        .filter_map(|host| {
            let peer_url = etcd_url(host.address?, ETCD_PEER_PORT);
            let silent_since = (!snapshot.alive.contains_key(&host.id)).then(|| {
                // The clock may be set meanwhile; what has passed is measured.
                let since = *silent.entry(host.id).or_insert(instant);
                let passed = SignedDuration::try_from(instant - since).unwrap_or_default();
                now.checked_sub(passed).unwrap_or(now)
            });
            let willing = host.meta.labels.get(label) != Some(never) && !leaving.contains(&host.id);
            Some(Server { host: host.id, peer_url, silent_since, willing })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use basin_model::cluster::Alive;
    use basin_model::host::Host;
    use basin_model::{Labels, Meta, keys};
    use basin_store::Revision;
    use basin_store::records::Versioned;
    use uuid::Uuid;

    use super::*;

    fn record<T>(key: String, value: T) -> Versioned<T> {
        Versioned::new(key, value, Revision(1))
    }

    /// Server `n`, which joined in that second.
    fn add(snapshot: &mut Snapshot, n: u8, joined: i64, alive: bool) -> HostId {
        let id = HostId::from_uuid(Uuid::from_u128(n.into()));
        let at = Timestamp::from_second(joined).unwrap();
        let meta = Meta {
            name: format!("srv{n}").parse().unwrap(),
            description: String::new(),
            labels: Labels::default(),
            created_at: at,
        };
        let address = Some([10, 0, 0, n].into());
        let host =
            Host { id, meta, address, api_port: Some(7443), drain: None, trunks: Vec::new() };
        snapshot.hosts.insert(id, record(keys::host(id), host));
        if alive {
            let sign = Alive { host: id, since: at };
            snapshot.alive.insert(id, record(keys::alive(id), sign));
        }
        id
    }

    #[test]
    fn servers_are_in_the_order_in_which_they_came_and_as_they_are() {
        let (mut snapshot, mut silent) = (Snapshot::default(), Silent::default());
        let leaving = Leaving::default();
        let newer = add(&mut snapshot, 1, 20, true);
        let older = add(&mut snapshot, 2, 10, false);
        let never = [UNWILLING].map(|(label, never)| (label.to_owned(), never.to_owned()));
        snapshot.hosts.get_mut(&newer).unwrap().value.meta.labels =
            BTreeMap::from(never).try_into().unwrap();
        let seen = servers(&snapshot, &leaving.all(), &mut silent);
        assert_eq!(seen.iter().map(|s| s.host).collect::<Vec<_>>(), [older, newer]);
        assert_eq!(seen.iter().map(|s| s.willing).collect::<Vec<_>>(), [true, false]);
        assert_eq!(seen[0].peer_url, "https://10.0.0.2:2380");
        assert!(seen[0].silent_since.is_some() && seen[1].silent_since.is_none());

        let leaves = leaving.leaves(older);
        assert!(servers(&snapshot, &leaving.all(), &mut silent).iter().all(|s| !s.willing));
        drop(leaves);
        assert!(servers(&snapshot, &leaving.all(), &mut silent)[0].willing);

        // It counts from when it was first missed, until it is heard of again.
        let since = silent[&older];
        servers(&snapshot, &leaving.all(), &mut silent);
        assert_eq!(silent[&older], since);
        add(&mut snapshot, 2, 10, true);
        assert_eq!(servers(&snapshot, &leaving.all(), &mut silent)[0].silent_since, None);
        assert!(silent.is_empty());
        snapshot.alive.clear();
        snapshot.hosts.remove(&older);
        servers(&snapshot, &leaving.all(), &mut silent);
        assert_eq!(silent.keys().collect::<Vec<_>>(), [&newer]);
    }
}

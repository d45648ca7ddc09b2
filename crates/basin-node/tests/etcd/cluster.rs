//! A cluster of real members: daemons that tend them, and the steward.

use std::collections::BTreeMap;
use std::time::Duration;

use basin_model::HostId;
use basin_node::etcd::plan::{Rules, Step};
use basin_node::etcd::steward::{Server, Steward};
use basin_node::etcd::{Beginning, MemberConfig, Resident};
use basin_store::etcd::EtcdStore;
use jiff::Timestamp;
use nix::sys::signal::{Signal, kill};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::world::{PATIENCE, World, pids_of, until};

/// A server and its daemon.
pub struct Machine {
    pub config: MemberConfig,
    pub resident: Resident,
    pub stop: CancellationToken,
    pub silent_since: Option<Timestamp>,
    pub willing: bool,
}

impl Machine {
    pub fn new(config: MemberConfig) -> Machine {
        let stop = CancellationToken::new();
        let resident = Resident::new(config.clone(), None, stop.clone());
        Machine { config, resident, stop, silent_since: None, willing: true }
    }

    pub fn host(&self) -> HostId {
        HostId::from_uuid(Uuid::parse_str(&self.config.name).unwrap())
    }

    /// With its daemon.
    pub fn burns(&mut self) {
        self.stop.cancel();
        for pid in pids_of(&self.config) {
            kill(pid, Signal::SIGKILL).unwrap();
        }
        self.silent_since = Some(Timestamp::now());
    }
}

/// Nobody starts it again after that.
impl Drop for Machine {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub struct Cluster {
    /// Dropped first: the daemons end before their processes.
    pub machines: BTreeMap<HostId, Machine>,
    pub world: World,
    pub store: EtcdStore,
    pub nearest: String,
}

/// Nobody is given up.
pub const PATIENT: Rules = Rules { replace_after: Duration::from_secs(3600) };

impl Cluster {
    /// Of one server.
    pub async fn begin() -> (Cluster, HostId) {
        let world = World::new();
        let machine = Machine::new(world.config(Beginning::Join { others: Vec::new() }));
        machine.resident.begin(world.token.clone()).await.unwrap();
        let (first, nearest) = (machine.host(), machine.config.client_url());
        let store = world.store(&[&machine.config]);
        let cluster =
            Cluster { machines: BTreeMap::from([(first, machine)]), world, store, nearest };
        assert!(cluster.settle(PATIENT, &[first]).await.iter().all(|s| *s == Step::Wait));
        (cluster, first)
    }

    pub fn add(&mut self) -> HostId {
        let machine = Machine::new(self.world.config(Beginning::Join { others: Vec::new() }));
        let host = machine.host();
        assert_eq!(host.to_string(), machine.config.name);
        self.machines.insert(host, machine);
        host
    }

    pub fn servers(&self) -> Vec<Server> {
        let server = |m: &Machine| Server {
            host: m.host(),
            peer_url: m.config.peer_url(),
            silent_since: m.silent_since,
            willing: m.willing,
        };
        self.machines.values().map(server).collect()
    }

    /// What every living daemon does now and then.
    async fn tend(&self) -> Option<()> {
        let members = self.store.follow_members(&self.nearest).await.ok()?;
        for machine in self.machines.values().filter(|m| m.silent_since.is_none()) {
            machine.resident.tend(&members).await.unwrap();
        }
        Some(())
    }

    /// Until these vote and nothing is left to do. Gives back what was done.
    pub async fn settle(&self, rules: Rules, voters: &[HostId]) -> Vec<Step> {
        let mut steward = Steward::new(rules);
        let mut steps: Vec<Step> = Vec::new();
        let mut problem = String::new();
        let done = async {
            loop {
                match steward.step(&self.store, &self.servers()).await {
                    Ok(verdict) if verdict.step == Step::Settled => return,
                    Ok(verdict) => {
                        problem = verdict.why;
                        steps.push(verdict.step);
                    }
                    Err(error) => problem = error.to_string(),
                }
                self.tend().await;
                sleep(Duration::from_millis(200)).await;
            }
        };
        if timeout(PATIENCE, done).await.is_err() {
            panic!("it does not settle: {problem}; {:?}", self.store.members().await);
        }
        let members = until("members are listed", async || self.store.members().await.ok()).await;
        assert!(members.iter().all(|m| !m.learner && m.started()), "{members:?}");
        let mut names: Vec<&str> = members.iter().map(|m| m.name.as_str()).collect();
        let mut expect: Vec<String> = voters.iter().map(HostId::to_string).collect();
        names.sort_unstable();
        expect.sort_unstable();
        assert_eq!(names, expect, "{steps:?}");
        until("daemons see it", async || self.tend().await).await;
        steps
    }

    pub async fn leader(&self) -> HostId {
        let lead = async || {
            for machine in self.machines.values().filter(|m| m.silent_since.is_none()) {
                let Some(member) = machine.resident.member().await else { continue };
                let status = member.admin().unwrap().status().await.ok()?;
                if status.leader == Some(status.id) {
                    return Some(machine.host());
                }
            }
            None
        };
        until("somebody leads", lead).await
    }

    pub fn is_clean(&self, host: HostId) -> bool {
        let config = &self.machines[&host].config;
        pids_of(config).is_empty() && !config.data_dir().exists()
    }
}

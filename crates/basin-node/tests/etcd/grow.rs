//! The plan, carried out on real members.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use basin_model::HostId;
use basin_node::etcd::plan::{Candidate, Rules, Seen, Step, next};
use basin_node::etcd::{Beginning, EtcdMember, MemberConfig, Peer};
use basin_store::etcd::{EtcdAdmin, Member};
use jiff::Timestamp;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::world::{PATIENCE, World, put, read, until};

/// Carries out what the plan says, as the controller does.
struct Cluster {
    world: World,
    hosts: Vec<HostId>,
    running: BTreeMap<HostId, EtcdMember>,
    /// Servers that died, and whose members nobody starts again.
    dead: Vec<HostId>,
}

impl Cluster {
    fn admin(&self) -> EtcdAdmin {
        let living = || self.running.iter().filter(|(host, _)| !self.dead.contains(host));
        let urls: Vec<String> = living().map(|(_, m)| m.config().client_url()).collect();
        let tls = self.world.tls(living().next().unwrap().1.config());
        EtcdAdmin::new(&urls, Some(&tls)).unwrap()
    }

    fn host_of(&self, member: &Member) -> Option<HostId> {
        let at = |m: &EtcdMember| member.peer_urls.contains(&m.config().peer_url());
        self.running.iter().find(|(_, m)| at(m)).map(|(host, _)| *host)
    }

    async fn look(&self) -> Option<Vec<Seen>> {
        let mut seen = Vec::new();
        for member in self.admin().members().await.ok()? {
            let host = self.host_of(&member);
            let process = host.filter(|h| !self.dead.contains(h)).map(|h| &self.running[&h]);
            let status = match process {
                Some(process) => process.admin().unwrap().status().await.ok(),
                None => None,
            };
            let leader = status.as_ref().is_some_and(|s| s.leader == Some(member.id));
            let down_since = status.is_none().then(Timestamp::now);
            seen.push(Seen { id: member.id, host, learner: member.learner, leader, down_since });
        }
        Some(seen)
    }

    async fn step(&mut self) -> Option<Step> {
        let seen = self.look().await?;
        let now = Timestamp::now();
        let candidates: Vec<Candidate> = self
            .hosts
            .iter()
            .map(|host| Candidate {
                host: *host,
                silent_since: self.dead.contains(host).then_some(now),
                willing: true,
            })
            .collect();
        // Whoever the test says is dead is so for good; who comes up has all the time.
        let rules = Rules { replace_after: Duration::from_secs(600) };
        let long_ago = now - Duration::from_secs(1000);
        let seen: Vec<Seen> = seen
            .into_iter()
            .map(|mut s| {
                if s.host.is_some_and(|h| self.dead.contains(&h)) {
                    s.down_since = Some(long_ago);
                }
                s
            })
            .collect();
        let step = next(&candidates, &seen, rules, now).step;
        match step {
            Step::AddLearner(host) => {
                let members = self.admin().members().await.ok()?;
                let others = members
                    .iter()
                    .map(|m| Peer { name: m.name.clone(), url: m.peer_urls[0].clone() })
                    .collect();
                let config = self.world.config(Beginning::Join { others });
                self.admin().add_learner(&config.peer_url()).await.ok()?;
                self.running.insert(host, self.world.start(config).await);
            }
            Step::Promote(id) => drop(self.admin().promote(id).await),
            Step::Remove(id) => drop(self.admin().remove(id).await),
            Step::MoveLeader(_) | Step::Wait | Step::Settled => (),
        }
        Some(step)
    }

    async fn settle(&mut self) {
        let mut settled = 0;
        let done = async {
            while settled < 2 {
                match self.step().await {
                    Some(Step::Settled) => settled += 1,
                    _ => sleep(Duration::from_millis(200)).await,
                }
            }
        };
        if timeout(PATIENCE, done).await.is_err() {
            for member in self.running.values() {
                let log = fs::read_to_string(member.config().dir.join("etcd.log")).unwrap();
                let lines: Vec<&str> = log.lines().collect();
                eprintln!("{}", lines[lines.len().saturating_sub(5)..].join("\n"));
            }
            panic!("it does not settle: {:?}", self.look().await);
        }
    }
}

fn host(n: u128) -> HostId {
    HostId::from_uuid(Uuid::from_u128(n))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_by_the_plan_and_a_lost_member_is_replaced() {
    let world = World::new();
    let first = world.start(world.first()).await;
    let mut cluster = Cluster {
        hosts: (1..=3).map(host).collect(),
        running: BTreeMap::from([(host(1), first)]),
        dead: Vec::new(),
        world,
    };
    until("the first member answers", async || cluster.look().await).await;
    cluster.settle().await;
    assert_eq!(cluster.look().await.unwrap().iter().filter(|m| !m.learner).count(), 3);
    let all: Vec<&MemberConfig> = cluster.running.values().map(EtcdMember::config).collect();
    let store = cluster.world.store(&all);
    put(&store, "a", "1").await;

    // A server burns down, another one takes its place.
    let lost = cluster.running[&host(2)].clone();
    lost.shut_down().await.unwrap();
    cluster.dead.push(host(2));
    cluster.hosts.push(host(4));
    cluster.settle().await;
    let seen = cluster.look().await.unwrap();
    let mut homes: Vec<_> = seen.iter().map(|m| m.host).collect();
    homes.sort();
    assert_eq!(homes, [Some(host(1)), Some(host(3)), Some(host(4))]);
    let newest = cluster.world.store(&[cluster.running[&host(4)].config()]);
    assert_eq!(read(&newest, "a").await.as_deref(), Some("1"));
    for member in cluster.running.values() {
        member.shut_down().await.unwrap();
    }
}

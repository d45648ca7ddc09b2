//! Members as Basin keeps them: real etcd with TLS, adopted, killed, replaced, restored.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use basin_model::HostId;
use basin_node::etcd::plan::{Candidate, Rules, Seen, Step, next};
use basin_node::etcd::{Beginning, EtcdMember, MemberConfig, MemberTls, Peer, restore};
use basin_store::etcd::{EtcdAdmin, EtcdIdentity, EtcdOptions, EtcdStore, EtcdTls, Member};
use basin_store::{Op, Revision, Store, StoreError, Txn};
use futures::StreamExt;
use jiff::Timestamp;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(180);

/// Servers of one cluster, on addresses of their own, and their CA.
struct World {
    /// Dropped first: the members live in the directory.
    started: Mutex<Vec<Killed>>,
    dir: tempfile::TempDir,
    ca: CertifiedIssuer<'static, KeyPair>,
    token: String,
    stop: CancellationToken,
}

fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let next = u8::try_from(NEXT.fetch_add(1, Ordering::Relaxed)).unwrap();
    Ipv4Addr::new(127, 1 + high % 250, low, next)
}

fn free_port(address: Ipv4Addr) -> u16 {
    TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().port()
}

impl World {
    fn new() -> World {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let (dir, token) = (tempfile::tempdir().unwrap(), Uuid::new_v4().to_string());
        World { dir, ca, token, stop: CancellationToken::new(), started: Mutex::default() }
    }

    fn config(&self, beginning: Beginning) -> MemberConfig {
        let (address, name) = (own_address(), Uuid::new_v4().to_string());
        let dir = self.dir.path().join(&name);
        fs::create_dir(&dir).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress(IpAddr::V4(address))];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.ca).unwrap();
        let (ca, both) = (dir.join("ca.pem"), dir.join("server.pem"));
        fs::write(&ca, self.ca.pem()).unwrap();
        fs::write(&both, certificate.pem() + &key.serialize_pem()).unwrap();
        let client_port = free_port(address);
        let peer_port =
            std::iter::repeat_with(|| free_port(address)).find(|p| *p != client_port).unwrap();
        let config = MemberConfig {
            program: "etcd".into(),
            name,
            dir,
            address: address.into(),
            client_port,
            peer_port,
            tls: Some(MemberTls { ca, certificate: both.clone(), key: both, revoked: None }),
            beginning,
        };
        self.started.lock().unwrap().push(Killed(config.clone()));
        config
    }

    fn first(&self) -> MemberConfig {
        self.config(Beginning::New { token: self.token.clone() })
    }

    async fn start(&self, config: MemberConfig) -> EtcdMember {
        EtcdMember::start(config, None, &self.stop).await
    }

    fn tls(&self, config: &MemberConfig) -> EtcdTls {
        let both = fs::read(&config.tls.as_ref().unwrap().key).unwrap();
        let identity = Some(EtcdIdentity { certificate: both.clone(), key: both });
        EtcdTls { ca: self.ca.pem().into_bytes(), identity }
    }

    fn store(&self, configs: &[&MemberConfig]) -> EtcdStore {
        let urls = configs.iter().map(|c| c.client_url()).collect();
        EtcdStore::connect(&EtcdOptions::new(urls, Some(self.tls(configs[0])))).unwrap()
    }
}

/// Ends what outlives it by design, also after a failure.
struct Killed(MemberConfig);

impl Drop for Killed {
    fn drop(&mut self) {
        for pid in pids_of(&self.0) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

fn pids_of(config: &MemberConfig) -> Vec<Pid> {
    let mark = format!("--data-dir={}", config.dir.join("data").display());
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let has = |pid: &i32| {
        let text = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        text.split(|b| *b == 0).any(|word| word == mark.as_bytes())
    };
    pids.filter(has).map(Pid::from_raw).collect()
}

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            match look().await {
                Some(found) => return found,
                None => sleep(Duration::from_millis(50)).await,
            }
        }
    };
    timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("{what}"))
}

async fn put(store: &EtcdStore, key: &str, value: &str) {
    let value = value.as_bytes().to_vec().into();
    let op = Op::Put { key: key.to_owned(), value, lease: None };
    let txn = Txn { when: vec![], then: vec![op] };
    until("a change is taken", async || store.commit(txn.clone()).await.ok()).await;
}

async fn read(store: &EtcdStore, key: &str) -> Option<String> {
    let entry = until("a read is answered", async || store.get(key).await.ok()).await;
    entry.map(|e| String::from_utf8_lossy(&e.value).into_owned())
}

async fn pid(member: &EtcdMember) -> u32 {
    let mut state = member.state();
    let up = timeout(PATIENCE, state.wait_for(|s| s.pid.is_some())).await;
    up.expect("etcd runs").unwrap().pid.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_outlives_the_daemon_is_adopted_and_started_again() {
    let world = World::new();
    let config = world.first();
    let groups =
        basin_qemu::qemu::cgroup::Cgroups::open(&format!("basin-etcd-{}", std::process::id()));
    let groups = groups.unwrap();
    let stop = CancellationToken::new();
    let member = EtcdMember::start(config.clone(), Some(groups.service("etcd")), &stop).await;
    let store = world.store(&[&config]);
    put(&store, "a", "1").await;
    let first = pid(&member).await;
    assert_eq!(groups.service("etcd").procs().unwrap(), [first]);
    let state = member.state().borrow().clone();
    assert!(!state.adopted && !state.outdated && state.problem.is_none(), "{state:?}");

    // The daemon goes, the member stays, and the next daemon has it.
    stop.cancel();
    drop(member);
    let mut changed = config.clone();
    changed.peer_port += 1;
    let stop = CancellationToken::new();
    let member = EtcdMember::start(changed, Some(groups.service("etcd")), &stop).await;
    assert_eq!(pid(&member).await, first);
    let state = member.state().borrow().clone();
    assert!(state.adopted && state.outdated, "{state:?}");
    stop.cancel();
    let stop = CancellationToken::new();
    let member = EtcdMember::start(config.clone(), Some(groups.service("etcd")), &stop).await;
    assert_eq!(read(&store, "a").await.as_deref(), Some("1"));

    kill(Pid::from_raw(i32::try_from(first).unwrap()), Signal::SIGKILL).unwrap();
    let mut state = member.state();
    let again = timeout(PATIENCE, state.wait_for(|s| s.pid.is_some_and(|pid| pid != first))).await;
    again.expect("it is started again").unwrap();
    assert_eq!(read(&store, "a").await.as_deref(), Some("1"));
    assert_eq!(pids_of(&config).len(), 1);
    let version = until("it answers", async || member.admin().unwrap().status().await.ok()).await;
    assert!(version.version.starts_with("3."), "{version:?}");

    member.remove().await.unwrap();
    assert!(pids_of(&config).is_empty() && !config.dir.join("data").exists());
    assert!(member.state().borrow().pid.is_none());
    groups.remove().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_cannot_run_says_why_and_is_tried_again() {
    let world = World::new();
    let mut config = world.first();
    config.program = world.dir.path().join("missing/etcd");
    let member = world.start(config.clone()).await;
    let mut state = member.state();
    let down = timeout(PATIENCE, state.wait_for(|s| s.problem.is_some())).await.unwrap();
    let problem = down.unwrap().problem.clone().unwrap();
    assert!(problem.detail.contains("apt-get install etcd-server"), "{problem:?}");
    member.shut_down().await.unwrap();

    let config = world.first();
    fs::write(&config.tls.as_ref().unwrap().certificate, "not a certificate").unwrap();
    let member = world.start(config.clone()).await;
    let mut state = member.state();
    let down = timeout(PATIENCE, state.wait_for(|s| s.problem.is_some())).await.unwrap();
    let problem = down.unwrap().problem.clone().unwrap();
    assert!(problem.detail.contains("PEM"), "{problem:?}");
    member.shut_down().await.unwrap();
}

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
            let down_since = status.is_none().then(|| Timestamp::now());
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_begins_a_new_cluster() {
    let world = World::new();
    let config = world.first();
    let member = world.start(config.clone()).await;
    let store = world.store(&[&config]);
    put(&store, "a", "in the backup").await;
    let backup = world.dir.path().join("backup.db");
    let admin = member.admin().unwrap();
    admin.snapshot(&backup).await.unwrap();
    let before = admin.status().await.unwrap();
    put(&store, "b", "after it").await;
    let last = store.list("").await.unwrap().revision;
    let mut watch = store.watch("", last).await.unwrap();

    let mut new = config.clone();
    new.beginning = Beginning::New { token: Uuid::new_v4().to_string() };
    let refused = restore(&new, &backup).await.unwrap_err();
    assert!(refused.detail.contains("etcd runs here"), "{refused:?}");
    member.shut_down().await.unwrap();
    let damaged = world.dir.path().join("damaged.db");
    let mut bytes = fs::read(&backup).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    let refused = restore(&new, &damaged).await.unwrap_err();
    assert!(refused.detail.contains("damaged.db"), "{refused:?}");
    assert!(Path::new(&config.data_dir()).exists(), "a bad backup costs nothing");

    restore(&new, &backup).await.unwrap();
    let member = world.start(new).await;
    assert_eq!(read(&store, "a").await.as_deref(), Some("in the backup"));
    assert_eq!(read(&store, "b").await, None);
    let after = member.admin().unwrap().status().await.unwrap();
    assert_ne!(before.cluster, after.cluster);
    assert_eq!(member.admin().unwrap().members().await.unwrap().len(), 1);
    // The history that was watched is not this one.
    let told = timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
    assert!(matches!(told, Err(StoreError::Compacted(at)) if at == last), "{told:?}");
    assert!(store.watch("", Revision(1)).await.is_ok());
    member.shut_down().await.unwrap();
}

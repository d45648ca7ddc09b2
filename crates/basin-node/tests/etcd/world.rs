//! Servers of a test: addresses, certificates, members, and their end.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use basin_node::etcd::{Beginning, EtcdMember, MemberConfig, MemberTls};
use basin_store::etcd::{EtcdIdentity, EtcdOptions, EtcdStore, EtcdTls};
use basin_store::{Op, Store, Txn};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub const PATIENCE: Duration = Duration::from_secs(180);

/// Servers of one cluster, on addresses of their own, and their CA.
pub struct World {
    /// Dropped first: the members live in the directory.
    pub started: Mutex<Vec<Killed>>,
    pub dir: tempfile::TempDir,
    pub ca: CertifiedIssuer<'static, KeyPair>,
    pub token: String,
    pub stop: CancellationToken,
}

pub fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let next = u8::try_from(NEXT.fetch_add(1, Ordering::Relaxed)).unwrap();
    Ipv4Addr::new(127, 1 + high % 250, low, next)
}

pub fn free_port(address: Ipv4Addr) -> u16 {
    TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().port()
}

impl World {
    pub fn new() -> World {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let (dir, token) = (tempfile::tempdir().unwrap(), Uuid::new_v4().to_string());
        World { dir, ca, token, stop: CancellationToken::new(), started: Mutex::default() }
    }

    pub fn config(&self, beginning: Beginning) -> MemberConfig {
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

    pub fn first(&self) -> MemberConfig {
        self.config(Beginning::New { token: self.token.clone() })
    }

    pub async fn start(&self, config: MemberConfig) -> EtcdMember {
        EtcdMember::start(config, None, &self.stop).await
    }

    pub fn tls(&self, config: &MemberConfig) -> EtcdTls {
        let both = fs::read(&config.tls.as_ref().unwrap().key).unwrap();
        let identity = Some(EtcdIdentity { certificate: both.clone(), key: both });
        EtcdTls { ca: self.ca.pem().into_bytes(), identity }
    }

    pub fn store(&self, configs: &[&MemberConfig]) -> EtcdStore {
        let urls = configs.iter().map(|c| c.client_url()).collect();
        EtcdStore::connect(&EtcdOptions::new(urls, Some(self.tls(configs[0])))).unwrap()
    }
}

/// Nobody starts anything again after that.
impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Ends what outlives it by design, also after a failure.
pub struct Killed(MemberConfig);

impl Drop for Killed {
    fn drop(&mut self) {
        kill_all(&self.0.mark());
    }
}

pub fn kill_all(mark: &str) {
    // One that was about to be started when its daemon ended comes up a moment later.
    for _ in 0..3 {
        for pid in pids_with(mark) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn pids_of(config: &MemberConfig) -> Vec<Pid> {
    pids_with(&config.mark())
}

pub fn pids_with(mark: &str) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let has = |pid: &i32| {
        let text = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        text.split(|b| *b == 0).any(|word| word == mark.as_bytes())
    };
    pids.filter(has).map(Pid::from_raw).collect()
}

pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
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

pub async fn put(store: &EtcdStore, key: &str, value: &str) {
    let value = value.as_bytes().to_vec().into();
    let op = Op::Put { key: key.to_owned(), value, lease: None };
    let txn = Txn { when: vec![], then: vec![op] };
    until("a change is taken", async || store.commit(txn.clone()).await.ok()).await;
}

pub async fn read(store: &EtcdStore, key: &str) -> Option<String> {
    let entry = until("a read is answered", async || store.get(key).await.ok()).await;
    entry.map(|e| String::from_utf8_lossy(&e.value).into_owned())
}

pub async fn pid(member: &EtcdMember) -> u32 {
    let mut state = member.state();
    let up = timeout(PATIENCE, state.wait_for(|s| s.pid.is_some())).await;
    up.expect("etcd runs").unwrap().pid.unwrap()
}

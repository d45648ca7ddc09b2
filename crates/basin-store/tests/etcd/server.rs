//! Real etcd processes of a test, in a temporary directory and on an address of their own.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::fs::File;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use basin_store::Store;
use basin_store::etcd::{EtcdAdmin, EtcdOptions, EtcdStore, EtcdTls};
use tempfile::TempDir;

/// How long a test waits for what has to come.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub fn patient(urls: Vec<String>, tls: Option<EtcdTls>) -> EtcdOptions {
    EtcdOptions { answer_within: Duration::from_secs(60), ..EtcdOptions::new(urls, tls) }
}

/// A member.
pub struct Etcd {
    child: Option<Child>,
    pub name: String,
    pub dir: PathBuf,
    pub client_url: String,
    pub peer_url: String,
    arguments: Vec<String>,
}

/// A cluster of members, and their files.
pub struct Cluster {
    pub members: Vec<Etcd>,
    pub dir: TempDir,
    pub tls: Option<EtcdTls>,
}

/// 127.0.0.0/8 is all of this machine: an address of its own keeps the members of one
/// test from the ports of every other.
fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    Ipv4Addr::new(127, 1 + high % 250, low, 1 + u8::try_from(next % 250).unwrap())
}

fn free_port(address: Ipv4Addr) -> u16 {
    TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().port()
}

/// The members' TLS, as files.
pub struct TlsFiles {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Etcd {
    /// Not started yet.
    pub fn new(name: &str, dir: &Path, address: Ipv4Addr, tls: Option<&TlsFiles>) -> Etcd {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let client = free_port(address);
        let peer = std::iter::repeat_with(|| free_port(address)).find(|p| *p != client).unwrap();
        let client_url = format!("{scheme}://{address}:{client}");
        let peer_url = format!("http://{address}:{peer}");
        let dir = dir.join(name);
        let mut arguments = vec![
            format!("--name={name}"),
            format!("--data-dir={}", dir.display()),
            format!("--listen-client-urls={client_url}"),
            format!("--advertise-client-urls={client_url}"),
            format!("--listen-peer-urls={peer_url}"),
            format!("--initial-advertise-peer-urls={peer_url}"),
            "--logger=zap".to_owned(),
        ];
        if let Some(tls) = tls {
            arguments.push(format!("--cert-file={}", tls.certificate.display()));
            arguments.push(format!("--key-file={}", tls.key.display()));
            arguments.push(format!("--trusted-ca-file={}", tls.ca.display()));
            arguments.push("--client-cert-auth".to_owned());
        }
        Etcd { child: None, name: name.to_owned(), dir, client_url, peer_url, arguments }
    }

    pub fn initial(&self) -> String {
        format!("{}={}", self.name, self.peer_url)
    }

    pub fn argument(&mut self, argument: String) {
        self.arguments.push(argument);
    }

    pub fn log(&self) -> PathBuf {
        self.dir.with_extension("log")
    }

    pub fn start(&mut self) {
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
        let mut command = Command::new("etcd");
        command.args(&self.arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().expect("etcd is installed (scripts/setup)"));
    }

    /// `SIGKILL`, and it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = i32::try_from(self.child.as_ref().unwrap().id()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Cluster {
    pub async fn start(count: usize) -> Cluster {
        Self::start_with(count, &[]).await
    }

    pub async fn start_with(count: usize, more: &[&str]) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let members = (0..count)
            .map(|n| Etcd::new(&format!("m{n}"), dir.path(), own_address(), None))
            .collect();
        let mut cluster = Cluster { members, dir, tls: None };
        cluster.begin(more).await;
        cluster
    }

    /// One member at this address, with TLS on the clients' side.
    pub async fn start_tls(
        address: Ipv4Addr,
        dir: TempDir,
        files: &TlsFiles,
        tls: EtcdTls,
    ) -> Cluster {
        let members = vec![Etcd::new("m0", dir.path(), address, Some(files))];
        let mut cluster = Cluster { members, dir, tls: Some(tls) };
        cluster.begin(&[]).await;
        cluster
    }

    pub fn address() -> Ipv4Addr {
        own_address()
    }

    async fn begin(&mut self, more: &[&str]) {
        let initial: Vec<String> = self.members.iter().map(Etcd::initial).collect();
        let initial = format!("--initial-cluster={}", initial.join(","));
        for member in &mut self.members {
            member.argument(initial.clone());
            more.iter().for_each(|argument| member.argument((*argument).to_owned()));
            member.start();
        }
        self.wait_until_it_answers().await;
    }

    pub fn urls(&self) -> Vec<String> {
        self.members.iter().map(|m| m.client_url.clone()).collect()
    }

    /// As Basin uses it.
    pub fn store(&self) -> EtcdStore {
        EtcdStore::connect(&EtcdOptions::new(self.urls(), self.tls.clone())).unwrap()
    }

    /// For what has to be answered, however busy the machine is.
    pub fn patient_store(&self) -> EtcdStore {
        EtcdStore::connect(&patient(self.urls(), self.tls.clone())).unwrap()
    }

    pub fn admin(&self) -> EtcdAdmin {
        EtcdAdmin::new(&self.urls(), self.tls.as_ref()).unwrap()
    }

    pub fn admin_of(&self, member: usize) -> EtcdAdmin {
        EtcdAdmin::new(&[self.members[member].client_url.clone()], self.tls.as_ref()).unwrap()
    }

    /// The member that leads.
    pub async fn leader(&self) -> usize {
        let until = Instant::now() + PATIENCE;
        loop {
            for n in 0..self.members.len() {
                if let Ok(status) = self.admin_of(n).status().await
                    && status.leader == Some(status.id)
                {
                    return n;
                }
            }
            assert!(Instant::now() < until, "a leader is elected\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn wait_until_it_answers(&self) {
        let (store, until) = (self.store(), Instant::now() + PATIENCE);
        while let Err(error) = store.get("x").await {
            assert!(Instant::now() < until, "etcd does not come up: {error}\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The end of each member's log.
    fn logs(&self) -> String {
        let mut all = String::new();
        for member in &self.members {
            let mut text = String::new();
            if let Ok(mut file) = File::open(member.log()) {
                let _ = file.read_to_string(&mut text);
            }
            let lines: Vec<&str> = text.lines().collect();
            let end = lines[lines.len().saturating_sub(10)..].join("\n");
            all += &format!("--- {}\n{end}\n", member.name);
        }
        all
    }
}

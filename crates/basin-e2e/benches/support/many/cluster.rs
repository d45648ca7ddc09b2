//! The processes: etcd as Basin sets it up, three controllers, and all other servers.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use basin_api::client::Client;
use basin_api::vm::{State, Vm};
use tempfile::TempDir;

use super::Size;
use super::program::Program;

pub const CONTROLLERS: usize = 3;

/// As in `basin-node`'s `etcd/config.rs`, but for certificates.
const ETCD: [&str; 10] = [
    "--name=simulated",
    "--heartbeat-interval=100",
    "--election-timeout=1000",
    "--pre-vote=true",
    "--auto-compaction-mode=periodic",
    "--auto-compaction-retention=30m",
    "--quota-backend-bytes=4294967296",
    "--snapshot-count=20000",
    "--logger=zap",
    "--log-level=error",
];

/// How long things took to come up.
#[derive(Clone, Copy)]
pub struct Began {
    pub controller: Duration,
    pub servers: Duration,
}

pub struct Cluster {
    // In the order in which they are to end.
    servers: Program,
    pub controllers: Vec<Program>,
    etcd: Program,
    url: String,
    pub began: Began,
    /// Which of the controllers leads.
    pub leader: usize,
    dir: TempDir,
}

impl Cluster {
    pub async fn start(size: &Size) -> anyhow::Result<Cluster> {
        let dir = tempfile::tempdir()?;
        let (etcd, url) = etcd(dir.path())?;
        let number = |n: usize| n.to_string();
        let mut load = simulated()?;
        load.args(["load", &url, &number(size.servers), &number(size.vms)]);
        Program::start(load)?.done().context("the records of the cluster")?;
        let since = Instant::now();
        let mut controllers = vec![controller(&url, 0, dir.path())?];
        controllers[0].says("ready").await?;
        let took = since.elapsed();
        controllers[0].says("leads").await?;
        for n in 1..CONTROLLERS {
            controllers.push(controller(&url, n, dir.path())?);
            controllers[n].says("ready").await?;
        }
        let since = Instant::now();
        let mut command = simulated()?;
        let nodes = dir.path().join("servers");
        command.args(["servers", &url, &number(size.servers), &number(size.whole)]).arg(nodes);
        let mut servers = Program::start(command)?;
        servers.says("ready").await?;
        let began = Began { controller: took, servers: since.elapsed() };
        let cluster = Cluster { servers, controllers, etcd, url, began, leader: 0, dir };
        cluster.settle().await?;
        Ok(cluster)
    }

    /// Machines of the servers that are simulated whole were found dead, and start.
    async fn settle(&self) -> anyhow::Result<()> {
        let client = self.client(self.leader)?;
        for _ in 0..120 {
            let vms = client.list::<Vm>().await?.items;
            if vms.iter().all(|vm| vm.status.state == State::Running) {
                // What follows from the last start is over then, too.
                tokio::time::sleep(Duration::from_secs(3)).await;
                return Ok(());
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        bail!("not all VMs run")
    }

    pub fn socket(&self, controller: usize) -> PathBuf {
        self.dir.path().join(format!("controller-{controller}/api.sock"))
    }

    pub fn client(&self, controller: usize) -> anyhow::Result<Client> {
        Ok(Client::local(&self.socket(controller))?)
    }

    /// One that does not lead.
    pub fn follower(&self) -> usize {
        (self.leader + 1) % CONTROLLERS
    }

    /// What the servers say that they have done.
    pub fn deeds(&self) -> tokio::sync::broadcast::Receiver<String> {
        self.servers.lines()
    }

    pub fn costing(&self) -> [(&'static str, u32); 4] {
        [
            ("leading controller", self.controllers[self.leader].pid()),
            ("another controller", self.controllers[self.follower()].pid()),
            ("etcd", self.etcd.pid()),
            ("all simulated servers", self.servers.pid()),
        ]
    }

    /// A controller that was killed begins anew.
    pub async fn revive(&mut self, n: usize) -> anyhow::Result<()> {
        self.controllers[n] = controller(&self.url, n, self.dir.path())?;
        self.controllers[n].says("ready").await
    }
}

fn simulated() -> anyhow::Result<Command> {
    Ok(Command::new(std::env::var_os("BASIN_SIMULATED").context("set BASIN_SIMULATED")?))
}

fn controller(url: &str, n: usize, dir: &Path) -> anyhow::Result<Program> {
    let dir = dir.join(format!("controller-{n}"));
    std::fs::create_dir_all(&dir)?;
    let mut command = simulated()?;
    command.args(["controller", url, &n.to_string()]).arg(dir);
    Program::start(command)
}

fn etcd(dir: &Path) -> anyhow::Result<(Program, String)> {
    let free = || -> anyhow::Result<String> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        Ok(format!("http://127.0.0.1:{port}"))
    };
    let (client, peer) = (free()?, free()?);
    let mut command = Command::new("etcd");
    command.args(ETCD).arg("--data-dir").arg(dir.join("etcd"));
    command.arg(format!("--listen-client-urls={client}"));
    command.arg(format!("--advertise-client-urls={client}"));
    command.arg(format!("--listen-peer-urls={peer}"));
    command.arg(format!("--initial-advertise-peer-urls={peer}"));
    command.arg(format!("--initial-cluster=simulated={peer}"));
    command.stderr(Stdio::null());
    Ok((Program::start(command)?, client))
}

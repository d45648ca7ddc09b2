//! What is measured of the cluster.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use basin_api::client::{Client, VmAction};
use basin_api::vm::{State, Vm, Wanted};
use futures::StreamExt;
use futures::future::select_ok;
use tokio::sync::broadcast::Receiver;
use tokio::sync::mpsc;

use super::Size;
use super::cluster::{CONTROLLERS, Cluster};
use crate::support::{ms, proc, timed};

const LISTS: usize = 50;
const SHELLS: usize = 5;
const CHANGES: usize = 300;
const AT_ONCE: usize = 8;
const FAILOVERS: usize = 3;
/// Nothing that is measured takes this long, unless it never comes.
const LIMIT: Duration = Duration::from_secs(60);

pub struct Cost {
    pub who: &'static str,
    pub cpu: f64,
    pub mib: f64,
}

/// Over some time; memory at its end.
pub async fn costs(of: &[(&'static str, u32)], time: Duration) -> anyhow::Result<Vec<Cost>> {
    let pids: Vec<u32> = of.iter().map(|(_, pid)| *pid).collect();
    let loads = tokio::task::spawn_blocking(move || proc::load(&pids, time)).await??;
    let one = |((who, pid), cpu): (&(&'static str, u32), f64)| {
        Ok(Cost { who, cpu, mib: proc::resident(*pid)?.all as f64 / 1024.0 })
    };
    of.iter().zip(loads).map(one).collect()
}

pub struct Lists {
    pub bytes: Vec<f64>,
    pub client: Vec<f64>,
    pub shell: Vec<f64>,
    pub mib: f64,
}

/// Of all VMs, at a controller that does not lead.
pub async fn lists(cluster: &Cluster) -> anyhow::Result<Lists> {
    let socket = cluster.socket(cluster.follower());
    let (mut bytes, mut shell, mut length) = (Vec::new(), Vec::new(), 0);
    for _ in 0..LISTS {
        let (read, time) = timed(|| get(&socket, "/v1/vms"));
        length = read?;
        bytes.push(time);
    }
    let (listing, mut client) = (cluster.client(cluster.follower())?, Vec::new());
    for _ in 0..LISTS {
        let since = Instant::now();
        listing.list::<Vm>().await?;
        client.push(ms(since.elapsed()));
    }
    for _ in 0..SHELLS {
        let program = std::env::var_os("BASIN_BIN").context("set BASIN_BIN")?;
        let mut command = Command::new(program);
        command.args(["vm", "list"]).env("BASIN_SOCKET", &socket);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let (status, time) = timed(|| command.status());
        if !status?.success() {
            bail!("basin vm list failed");
        }
        shell.push(time);
    }
    Ok(Lists { bytes, client, shell, mib: length as f64 / f64::from(1 << 20) })
}

/// The length of an answer, read to its end and not looked at.
fn get(socket: &Path, path: &str) -> anyhow::Result<usize> {
    let mut stream = UnixStream::connect(socket)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    if !answer.starts_with(b"HTTP/1.1 200") {
        bail!("{path}: {}", String::from_utf8_lossy(&answer[..answer.len().min(300)]));
    }
    Ok(answer.len())
}

/// From the request on, one change at a time.
#[derive(Default)]
pub struct Changes {
    pub accepted: Vec<f64>,
    pub done: Vec<f64>,
    pub heard: Vec<f64>,
    pub known: Vec<f64>,
}

/// What another controller says about a VM.
struct Heard {
    vm: String,
    wanted: Wanted,
    state: State,
    at: Duration,
}

pub async fn changes(cluster: &Cluster, size: &Size) -> anyhow::Result<Changes> {
    let leader = cluster.client(cluster.leader)?;
    let vms = on_whole_servers(&leader, size).await?;
    let mut heard = listen(&cluster.client(cluster.follower())?).await?;
    let mut deeds = cluster.deeds();
    let mut all = Changes::default();
    let half = CHANGES / 2;
    for n in 0..CHANGES {
        let (vm, pause) = (&vms[n % half % vms.len()], n < half);
        let (action, state) = if pause {
            (VmAction::Pause, State::Paused)
        } else {
            (VmAction::Resume, State::Running)
        };
        let wanted = if pause { Wanted::Paused } else { Wanted::Running };
        let since = now();
        let passed = |at: Duration| ms(at.saturating_sub(since));
        leader.vm_action(vm, action).await?;
        all.accepted.push(passed(now()));
        all.done.push(passed(done(&mut deeds, vm, pause).await?));
        let mut first = None;
        let known = async {
            while let Some(news) = heard.recv().await {
                if news.vm != *vm || news.wanted != wanted {
                    continue;
                }
                first.get_or_insert(news.at);
                if news.state == state {
                    return Ok(news.at);
                }
            }
            bail!("the events ended")
        };
        all.known.push(passed(tokio::time::timeout(LIMIT, known).await??));
        all.heard.extend(first.map(passed));
    }
    Ok(all)
}

/// VMs that run on servers whose node is simulated whole, on each server in turn.
async fn on_whole_servers(client: &Client, size: &Size) -> anyhow::Result<Vec<String>> {
    let mut vms = client.list::<Vm>().await?.items;
    vms.sort_by(|a, b| a.meta.name.cmp(&b.meta.name));
    let last = CONTROLLERS + size.whole;
    let whole = |n: &usize| (CONTROLLERS..last).contains(&(n % size.servers));
    let found = vms.into_iter().enumerate().filter(|(n, _)| whole(n));
    Ok(found.map(|(_, vm)| vm.meta.id).collect())
}

async fn listen(client: &Client) -> anyhow::Result<mpsc::UnboundedReceiver<Heard>> {
    let mut events = Box::pin(client.events(&["vm"], None).await?.into_stream());
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(event)) = events.next().await {
            let at = now();
            let Some(Ok(vm)) = event.object.map(serde_json::from_value::<Vm>) else { continue };
            let (wanted, state) = (vm.wanted, vm.status.state);
            if sender.send(Heard { vm: vm.meta.id, wanted, state, at }).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// When a server has paused or resumed the VM, as it says.
async fn done(deeds: &mut Receiver<String>, vm: &str, pause: bool) -> anyhow::Result<Duration> {
    let state = if pause { "paused" } else { "running" };
    let start = format!("did {state} {vm} ");
    let found = async {
        loop {
            let line = deeds.recv().await?;
            if let Some(at) = line.strip_prefix(&start) {
                return anyhow::Ok(Duration::from_nanos(at.parse()?));
            }
        }
    };
    tokio::time::timeout(LIMIT, found).await.with_context(|| format!("VM {vm} is not {state}"))?
}

/// The clock that all processes of this machine share.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Pauses and resumes as fast as it goes, several at once; changes a second.
pub async fn load(
    cluster: &Cluster,
    size: &Size,
    time: Duration,
) -> anyhow::Result<(f64, Vec<Cost>)> {
    let leader = cluster.client(cluster.leader)?;
    let vms = on_whole_servers(&leader, size).await?;
    let until = Instant::now() + time;
    let worker = |n: usize| {
        let (leader, mut deeds) = (leader.clone(), cluster.deeds());
        let own: Vec<String> = vms.iter().skip(n).step_by(AT_ONCE).cloned().collect();
        async move {
            let mut count = 0u32;
            for vm in own.iter().cycle() {
                for pause in [true, false] {
                    let action = if pause { VmAction::Pause } else { VmAction::Resume };
                    let task = leader.vm_action(vm, action).await?;
                    done(&mut deeds, vm, pause).await?;
                    leader.wait_task(&task.id, |_| {}).await?;
                    count += u32::from(Instant::now() < until);
                }
                if Instant::now() >= until {
                    break;
                }
            }
            anyhow::Ok(count)
        }
    };
    let workers = (0..AT_ONCE).map(|n| tokio::spawn(worker(n))).collect::<Vec<_>>();
    let costs = costs(&cluster.costing(), time).await?;
    let mut changes = 0;
    for worker in workers {
        changes += worker.await??;
    }
    Ok((f64::from(changes) / time.as_secs_f64(), costs))
}

/// The leader is killed; the others are asked for a change at once, and whoever leads
/// next answers.
pub async fn failovers(cluster: &mut Cluster, size: &Size) -> anyhow::Result<Vec<f64>> {
    let vms = on_whole_servers(&cluster.client(cluster.leader)?, size).await?;
    let mut times = Vec::new();
    for vm in vms.iter().take(FAILOVERS) {
        let others: Vec<usize> = (0..CONTROLLERS).filter(|n| *n != cluster.leader).collect();
        let clients = others.iter().map(|n| Ok((*n, cluster.client(*n)?)));
        let clients = clients.collect::<anyhow::Result<Vec<_>>>()?;
        let dead = cluster.leader;
        cluster.controllers[dead].kill();
        let since = Instant::now();
        let asks = clients.iter().map(|(n, client)| {
            Box::pin(async move {
                loop {
                    match client.vm_action(vm, VmAction::Pause).await {
                        Ok(_) => return anyhow::Ok(*n),
                        Err(error) if since.elapsed() > LIMIT => return Err(error.into()),
                        Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                    }
                }
            })
        });
        let (leader, _) = select_ok(asks).await?;
        times.push(ms(since.elapsed()));
        cluster.leader = leader;
        cluster.revive(dead).await?;
    }
    Ok(times)
}

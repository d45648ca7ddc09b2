//! Figures of the server and its VMs, gathered when somebody asks, and kept for a second.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use basin_model::{Bytes, VmId};
use basin_qemu::{GuestInfo, Machine};
use futures::{FutureExt, StreamExt};
use tokio::sync::Mutex as AsyncMutex;

use crate::api::{DiskUsage, HostUsage, NicUsage, NodeUsage, VmUsage};
use crate::host::meminfo;
use crate::vms::Machines;
use crate::vms::Vms;
use crate::vms::parts::Parts;

const FRESH: Duration = Duration::from_secs(1);

/// How often a guest's agent is asked, at most.
const ASK_AGENT_EVERY: Duration = Duration::from_secs(10);

/// A machine that does not answer by then is left out.
const PATIENCE: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Default)]
pub struct Meter {
    last: AsyncMutex<Option<(Instant, NodeUsage)>>,
    agents: Arc<Mutex<BTreeMap<VmId, Agent>>>,
}

/// What a guest's agent said, and when it was asked.
struct Agent {
    asked: Instant,
    said: Option<GuestInfo>,
}

impl Meter {
    pub async fn read(&self, machines: &Machines, vms: &Vms, parts: &Parts) -> NodeUsage {
        let mut last = self.last.lock().await;
        if let Some((at, usage)) = &*last
            && at.elapsed() < FRESH
        {
            return usage.clone();
        }
        let usage = self.gather(machines, vms, parts).await;
        *last = Some((Instant::now(), usage.clone()));
        usage
    }

    async fn gather(&self, machines: &Machines, vms: &Vms, parts: &Parts) -> NodeUsage {
        let all = machines.all();
        self.agents().retain(|id, _| all.iter().any(|(vm, _)| vm == id));
        let mut readings = Vec::with_capacity(all.len());
        for (id, machine) in all {
            readings.push(self.vm(id, machine, vms, parts).map(move |usage| (id, usage)).boxed());
        }
        let readings = futures::stream::iter(readings).buffer_unordered(32);
        let mut usage = NodeUsage { host: host(parts), vms: readings.collect().await };
        disks(&mut usage, vms, parts).await;
        usage
    }

    async fn vm(&self, id: VmId, machine: Arc<dyn Machine>, vms: &Vms, parts: &Parts) -> VmUsage {
        let balloon = tokio::time::timeout(PATIENCE, machine.balloon()).await;
        let mut nics = BTreeMap::new();
        for nic in vms.get(id).iter().flat_map(|vm| &vm.spec.nics) {
            if let Some(stats) = parts.fabric.tap_stats(nic.id).await {
                let figures = NicUsage { received: stats.received, sent: stats.sent };
                nics.insert(nic.id, figures);
            }
        }
        VmUsage {
            cpu_time: machine.cpu_time().unwrap_or_default(),
            resident: machine.resident().unwrap_or_default(),
            balloon: balloon.ok().and_then(Result::ok),
            guest: self.guest(id, machine),
            disks: BTreeMap::new(),
            nics,
        }
    }

    /// What the agent said last; asks it again meanwhile when that is old.
    fn guest(&self, id: VmId, machine: Arc<dyn Machine>) -> Option<GuestInfo> {
        let mut agents = self.agents();
        let known = agents.get(&id);
        let said = known.and_then(|agent| agent.said.clone());
        if known.is_none_or(|agent| agent.asked.elapsed() >= ASK_AGENT_EVERY) {
            agents.insert(id, Agent { asked: Instant::now(), said: said.clone() });
            let agents = self.agents.clone();
            tokio::spawn(async move {
                let said = machine.guest_info().await;
                let mut agents = agents.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(agent) = agents.get_mut(&id) {
                    agent.said = said;
                }
            });
        }
        said
    }

    fn agents(&self) -> std::sync::MutexGuard<'_, BTreeMap<VmId, Agent>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn disks(usage: &mut NodeUsage, vms: &Vms, parts: &Parts) {
    let Ok(Ok(exports)) = tokio::time::timeout(PATIENCE, parts.disks.list()).await else { return };
    let mut by_volume: BTreeMap<_, _> =
        exports.into_iter().map(|state| (state.export.volume, state)).collect();
    for (id, figures) in &mut usage.vms {
        for disk in vms.get(*id).iter().flat_map(|vm| &vm.spec.disks) {
            let Some(state) = by_volume.remove(&disk.volume) else { continue };
            let disk_usage = DiskUsage {
                reads: state.stats.reads,
                read: state.stats.read_bytes,
                writes: state.stats.writes,
                written: state.stats.write_bytes,
                stalled: state.stalled,
            };
            figures.disks.insert(disk.volume, disk_usage);
        }
    }
}

fn host(parts: &Parts) -> HostUsage {
    HostUsage {
        memory_total: meminfo("MemTotal:").unwrap_or_default(),
        memory_available: meminfo("MemAvailable:").unwrap_or_default(),
        cpu_busy: cpu_busy(&std::fs::read_to_string("/proc/stat").unwrap_or_default()),
        daemon_resident: resident(std::process::id()).unwrap_or_default(),
        blockd_resident: parts.disks.pid().and_then(resident),
    }
}

/// What a process holds itself. Shared memory is left out: blockd maps the memory of
/// guests, and what it has touched of that is the guests'.
fn resident(pid: u32) -> Option<Bytes> {
    own_memory(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn own_memory(status: &str) -> Option<Bytes> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok().map(Bytes::kib)
    };
    Some(field("RssAnon:")? + field("RssFile:")?)
}

/// User, nice, system, irq, softirq and steal time of all CPUs. A guest's time is
/// within user time already.
fn cpu_busy(stat: &str) -> Duration {
    let fields: Vec<u64> = stat
        .lines()
        .find_map(|line| line.strip_prefix("cpu "))
        .map(|line| line.split_whitespace().filter_map(|f| f.parse().ok()).collect())
        .unwrap_or_default();
    let ticks: u64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|i| fields.get(*i)).sum();
    // USER_HZ is 100 on every Linux that Basin runs on.
    Duration::from_millis(ticks * 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_time_leaves_out_idle_and_counts_guests_once() {
        let stat = "cpu  10 20 30 4000 500 6 7 8 9 10\ncpu0 1 2 3 4\n";
        assert_eq!(cpu_busy(stat), Duration::from_millis(810));
        assert_eq!(cpu_busy("garbage"), Duration::ZERO);
    }

    #[test]
    fn shared_memory_is_not_counted() {
        let status = "RssAnon:\t  100 kB\nRssFile:\t   20 kB\nRssShmem:\t  999 kB\n";
        assert_eq!(own_memory(status), Some(Bytes::kib(120)));
        assert_eq!(own_memory("garbage"), None);
    }

    #[test]
    fn this_process_has_memory() {
        assert!(resident(std::process::id()).unwrap() > Bytes::kib(100));
    }
}

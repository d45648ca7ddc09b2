//! Starting, stopping and pausing virtual machines.

use std::time::Duration;

use basin_model::host::{Host, QemuInfo};
use basin_model::keys::{self, Kind};
use basin_model::task::{Problem, Task};
use basin_model::vm::{Phase, Placement, Power, PowerOff, Vm, VmStatus};
use basin_model::{Bytes, VmId};
use basin_sched::place::{Candidate, Demand, Verdict, place};
use basin_store::records::{TxnBuilder, Versioned};
use jiff::Timestamp;

use super::inventory::Snapshot;
use super::vms::committed_memory;
use super::{App, baseline, holds, problems};
use crate::intake::reach::{When, reachable_from};
use crate::intake::trunk;
use crate::intake::vm_patch::is_stopped;
use crate::workflows::vm_power_change::{Change, VmPowerChange};
use crate::workflows::vm_power_on::VmPowerOn;

/// How long a guest has to shut down when nobody says.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(90);

impl App {
    /// Places a VM and starts it.
    pub async fn start_vm(&self, reference: &str) -> Result<Task, Problem> {
        self.start(|snapshot, _| {
            let vm = snapshot.vm(reference)?;
            holds::free(&vm.value, snapshot)?;
            if !is_stopped(&vm.value, snapshot) && !is_waiting(status(&vm.value, snapshot)) {
                let advice = "Nothing is to be done; or reset it, or resume it.";
                return Err(problems::wrong_state(
                    "vm",
                    &vm.value.meta.name,
                    "not stopped",
                    advice,
                ));
            }
            let (wanted, txn) = power_on(vm, snapshot)?;
            Ok((VmPowerOn::new(&wanted), txn))
        })
        .await
    }

    /// Presses the power button, and pulls the plug after the timeout.
    pub async fn shut_down_vm(
        &self,
        reference: &str,
        timeout: Option<Duration>,
    ) -> Result<Task, Problem> {
        let timeout = timeout.unwrap_or(SHUTDOWN_TIMEOUT);
        self.change_power(reference, Change::Off, |vm, now| {
            let deadline = now.saturating_add(timeout).unwrap_or(Timestamp::MAX);
            vm.run.power = Power::Off { how: PowerOff::Graceful { deadline } };
        })
        .await
    }

    pub async fn power_off_vm(&self, reference: &str) -> Result<Task, Problem> {
        self.change_power(reference, Change::Off, |vm, _| {
            vm.run.power = Power::Off { how: PowerOff::Now };
        })
        .await
    }

    pub async fn pause_vm(&self, reference: &str) -> Result<Task, Problem> {
        self.change_power(reference, Change::Pause, |vm, _| vm.run.power = Power::Paused).await
    }

    pub async fn resume_vm(&self, reference: &str) -> Result<Task, Problem> {
        self.change_power(reference, Change::Resume, |vm, _| vm.run.power = Power::Running).await
    }

    pub async fn reset_vm(&self, reference: &str) -> Result<Task, Problem> {
        self.change_power(reference, Change::Reset, |vm, _| vm.run.resets += 1).await
    }

    async fn change_power(
        &self,
        reference: &str,
        change: Change,
        edit: impl Fn(&mut Vm, Timestamp) + Send + Sync,
    ) -> Result<Task, Problem> {
        self.start(|snapshot, mint| {
            let vm = snapshot.vm(reference)?;
            holds::free(&vm.value, snapshot)?;
            allowed(change, &vm.value, snapshot)?;
            let mut wanted = vm.value.clone();
            edit(&mut wanted, mint.now);
            let txn = unlocked(vm).replace(vm, &wanted);
            Ok((VmPowerChange::new(&wanted, change), txn))
        })
        .await
    }
}

fn status(vm: &Vm, snapshot: &Snapshot) -> Option<VmStatus> {
    snapshot.vm_statuses.get(&vm.id).map(|s| s.value.clone())
}

/// Between two tries: a request to start it now is worth trying.
fn is_waiting(status: Option<VmStatus>) -> bool {
    status.is_some_and(|s| matches!(s.phase, Phase::BackingOff { .. } | Phase::Failed))
}

fn allowed(change: Change, vm: &Vm, snapshot: &Snapshot) -> Result<(), Problem> {
    let phase = status(vm, snapshot).map_or(Phase::Stopped, |s| s.phase);
    let stopped = is_stopped(vm, snapshot);
    let refuse =
        |is: &str, advice: &str| Err(problems::wrong_state("vm", &vm.meta.name, is, advice));
    match change {
        Change::Off if stopped => refuse("stopped already", "Nothing is to be done."),
        Change::Pause | Change::Reset | Change::Resume if stopped => {
            refuse("stopped", "Start it first.")
        }
        Change::Pause if phase != Phase::Running => {
            refuse("not running", "Only a running VM can be paused.")
        }
        Change::Resume if phase != Phase::Paused => {
            refuse("not paused", "Only a paused VM can be resumed.")
        }
        Change::Reset if !matches!(phase, Phase::Running | Phase::Paused | Phase::Crashed) => {
            refuse("not running", "Only a running VM can be reset.")
        }
        Change::Off | Change::Pause | Change::Resume | Change::Reset => Ok(()),
    }
}

/// A transaction that holds only while nobody has the VM for itself.
fn unlocked(vm: &Versioned<Vm>) -> TxnBuilder {
    TxnBuilder::new().require_absent(keys::lock(Kind::Vm, vm.value.id))
}

/// The VM as it is to run: placed, in a new epoch, with what its guest will see; and the transaction for it.
pub fn power_on(vm: &Versioned<Vm>, snapshot: &Snapshot) -> Result<(Vm, TxnBuilder), Problem> {
    let mut wanted = vm.value.clone();
    let placement = placement(&vm.value, snapshot)?;
    wanted.placement = Some(placement);
    wanted.hardware = baseline::hardware(&wanted, placement.host, snapshot);
    wanted.run.power = Power::Running;
    wanted.run.epoch += 1;
    let mut txn = unlocked(vm).replace(vm, &wanted);
    for disk in &wanted.spec.disks {
        let volume = snapshot.volume(&disk.volume.to_string())?;
        let clones = snapshot.linked_to_volume(disk.volume);
        if !disk.read_only && !clones.is_empty() {
            return Err(problems::in_use("volume", &volume.value.meta.name, &clones));
        }
        txn = txn.require_absent(keys::lock(Kind::Volume, disk.volume));
    }
    Ok((wanted, txn))
}

/// Where a VM starts: the same server keeps its generation, another gets the next.
fn placement(vm: &Vm, snapshot: &Snapshot) -> Result<Placement, Problem> {
    let candidates = candidates(snapshot, |other| other == vm.id);
    let verdict = place(&demand(vm, When::Now, snapshot), &candidates);
    let Some(host) = verdict.chosen else {
        return Err(problems::no_host(&vm.meta.name, &reasons(&verdict)));
    };
    Ok(match vm.placement {
        Some(placement) if placement.host == host => placement,
        Some(placement) => Placement { host, generation: placement.generation.next() },
        None => Placement { host, generation: basin_model::Generation(1) },
    })
}

/// What a VM needs of a server, now or once all servers are in order.
pub fn demand(vm: &Vm, when: When, snapshot: &Snapshot) -> Demand {
    let mut cut_off = reachable_from(vm, when, snapshot).cut_off;
    let networks = vm.spec.nics.iter().filter_map(|nic| snapshot.networks.get(&nic.network));
    for network in networks {
        for host in snapshot.hosts.keys() {
            if let Some(why) = trunk::why_not(&network.value, *host, when, snapshot) {
                cut_off.entry(*host).or_insert(why);
            }
        }
    }
    Demand { vcpus: vm.spec.vcpus, memory: vm.spec.memory, cut_off }
}

/// A server of a cluster whose daemon does not run, or does not reach the store.
pub fn is_silent(host: &Host, snapshot: &Snapshot) -> bool {
    host.address.is_some() && !snapshot.alive.contains_key(&host.id)
}

/// The servers with what is committed there, some VMs left out of the account.
pub fn candidates(snapshot: &Snapshot, leave_out: impl Fn(VmId) -> bool) -> Vec<Candidate> {
    let hosts = snapshot.hosts.values().map(|h| &h.value);
    hosts
        .filter_map(|host| {
            let status = &snapshot.host_statuses.get(&host.id)?.value;
            let emulated = !status.kvm.usable;
            let here = |vm: &&Vm| vm.placement.is_some_and(|p| p.host == host.id);
            let vms = snapshot.vms.values().map(|vm| &vm.value);
            let committed: Bytes = vms
                .filter(here)
                .filter(|vm| !leave_out(vm.id) && !is_stopped(vm, snapshot))
                .map(|vm| committed_memory(vm, emulated))
                .sum();
            let unusable = match &status.qemu {
                QemuInfo::Unusable { reason } => Some(reason.clone()),
                QemuInfo::Usable { .. } if is_silent(host, snapshot) => {
                    Some("it does not answer".to_owned())
                }
                QemuInfo::Usable { .. } => None,
            };
            let name = host.meta.name.to_string();
            let capacity = status.capacity;
            let draining = host.drain.is_some();
            Some(Candidate {
                host: host.id,
                name,
                capacity,
                emulated,
                committed,
                unusable,
                draining,
            })
        })
        .collect()
}

pub fn reasons(verdict: &Verdict) -> Vec<String> {
    if verdict.others.is_empty() {
        return vec!["no server has reported yet".to_owned()];
    }
    verdict.others.iter().map(|(name, why)| format!("{name}: {why}")).collect()
}

//! Servers.

use basin_api::host::{Committed, Condition, Host, HostState, HostStatus, StuckVm, Trunk};
use basin_model::host as model;
use basin_model::vlan;
use basin_model::vm::Vm;
use basin_model::{Bytes, HostId};
use basin_sched::baseline::Baseline;
use basin_store::records::Versioned;

use super::meta;
use crate::app::baseline;
use crate::app::drains::Stuck;
use crate::app::inventory::Snapshot;
use crate::app::vm_power::is_silent;
use crate::app::vms::committed_memory;
use crate::intake::vm_patch::is_stopped;

/// `baselines` is made once for all hosts of an answer.
pub fn host(record: &Versioned<model::Host>, snapshot: &Snapshot, baselines: &[Baseline]) -> Host {
    let host = &record.value;
    let found = snapshot.host_statuses.get(&host.id);
    Host {
        meta: meta(host.id, &host.meta, record.revision),
        status: found.map(|s| status(&s.value, baseline::condition(&host.meta.name, baselines))),
        committed: committed(host.id, snapshot),
        state: state(host, snapshot),
        address: host.address.map(|address| address.to_string()),
        leads: snapshot.leader.as_ref().is_some_and(|l| l.host == host.id),
        keeps_state: snapshot.voters.contains_key(&host.id),
        trunks: host.trunks.iter().map(|t| trunk(t, found.map(|s| &s.value))).collect(),
        draining_since: host.drain.map(|drain| drain.since.to_string()),
        stuck: Vec::new(),
    }
}

fn trunk(trunk: &vlan::Trunk, status: Option<&model::HostStatus>) -> Trunk {
    let found = status.and_then(|s| s.trunks.iter().find(|t| t.trunk == *trunk));
    Trunk {
        interface: trunk.interface.to_string(),
        untagged: trunk.untagged.map(vlan::VlanId::get),
        mtu: found.and_then(|t| t.mtu),
        problem: found.and_then(|t| t.problem.clone()),
    }
}

/// The VMs that do not leave a server.
pub fn stuck(host: HostId, all: &[Stuck]) -> Vec<StuckVm> {
    let there = all.iter().filter(|stuck| stuck.on == host);
    let shown = |stuck: &Stuck| StuckVm {
        vm: stuck.vm.clone(),
        reasons: stuck.reasons.clone(),
        waits: stuck.passes,
    };
    there.map(shown).collect()
}

fn state(host: &model::Host, snapshot: &Snapshot) -> HostState {
    let mut there = snapshot.vms.values().map(|vm| &vm.value);
    match host.drain {
        _ if is_silent(host, snapshot) => HostState::Unreachable,
        None => HostState::Ready,
        Some(_) => {
            let runs = |vm: &Vm| {
                vm.placement.is_some_and(|p| p.host == host.id) && !is_stopped(vm, snapshot)
            };
            if there.any(runs) { HostState::Draining } else { HostState::Drained }
        }
    }
}

fn committed(host: HostId, snapshot: &Snapshot) -> Committed {
    let vms = snapshot.vms.values().map(|vm| &vm.value);
    let here = vms.filter(|vm| vm.placement.is_some_and(|p| p.host == host));
    let emulated = snapshot.host_statuses.get(&host).is_none_or(|s| !s.value.kvm.usable);
    let mut sum = Committed::default();
    let mut memory = Bytes::ZERO;
    for vm in here.filter(|vm| !is_stopped(vm, snapshot)) {
        sum.vms += 1;
        sum.vcpus += vm.spec.vcpus.0;
        memory += committed_memory(vm, emulated);
    }
    Committed { memory_bytes: memory.get(), ..sum }
}

fn status(status: &model::HostStatus, more: Option<model::Condition>) -> HostStatus {
    let (qemu_version, qemu_problem) = match &status.qemu {
        model::QemuInfo::Usable { version, .. } => (Some(version.clone()), None),
        model::QemuInfo::Unusable { reason } => (None, Some(reason.clone())),
    };
    HostStatus {
        daemon_version: status.daemon_version.clone(),
        started_at: status.started_at.to_string(),
        kernel: status.kernel.clone(),
        cpu_model: status.cpu_model.clone(),
        cpus: status.capacity.cpus.0,
        memory_bytes: status.capacity.memory.get(),
        qemu_version,
        qemu_problem,
        accelerator: if status.kvm.usable { "kvm" } else { "tcg" }.to_owned(),
        kvm_reason: status.kvm.reason.clone(),
        cgroups: status.cgroups.clone(),
        conditions: status
            .conditions
            .iter()
            .chain(&more)
            .map(|c| Condition {
                subject: c.subject.clone(),
                detail: c.problem.detail.clone(),
                advice: c.problem.advice.clone(),
            })
            .collect(),
        usage: None,
    }
}

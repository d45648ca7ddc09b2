//! What is known of VMs and servers when a move is judged (decides: `basin-sched`).
//!
//! The inventory has what lasts. What passes (who answers, free space, stalled disks)
//! is asked of the servers first, and handed in.

use std::collections::BTreeMap;

use basin_model::datastore::Sharing;
use basin_model::host::{Host, HostStatus, QemuInfo};
use basin_model::network::Network;
use basin_model::vm::{Disk, Phase, Vm};
use basin_model::volume::{Volume, VolumeSource};
use basin_model::{Bytes, DatastoreId, HostId, VmId, VolumeId};
use basin_sched::movable::{Activity, InFlight, MovingDisk, MovingVm, Site, Store, Stores};

use super::inventory::Snapshot;
use super::{App, vm_power};
use crate::intake::chain;
use crate::intake::reach::{When, why_not};
use crate::intake::trunk;
use crate::intake::vm_patch::is_stopped;

/// What passes, as the servers have told it.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub silent: BTreeMap<HostId, String>,
    pub free: BTreeMap<DatastoreId, Bytes>,
    pub stalled: BTreeMap<VolumeId, String>,
}

impl App {
    /// Asks all servers, for no longer than figures are worth.
    pub async fn facts(&self) -> Facts {
        let (usages, capacities) = tokio::join!(self.nodes().usages(), self.capacities());
        let free = capacities.into_iter().map(|(id, c)| (id, c.free)).collect();
        let mut facts = Facts { free, ..Facts::default() };
        for (host, usage) in usages {
            match usage {
                Ok(usage) => {
                    let disks = usage.vms.into_values().flat_map(|vm| vm.disks);
                    facts.stalled.extend(disks.filter_map(|(id, d)| Some((id, d.stalled?))));
                }
                Err(problem) => drop(facts.silent.insert(host, problem.detail)),
            }
        }
        let snapshot = self.inventory().read();
        for host in snapshot.hosts.values().map(|host| &host.value) {
            if vm_power::is_silent(host, &snapshot) {
                let why = || "its daemon does not run, or does not reach the store".to_owned();
                facts.silent.entry(host.id).or_insert_with(why);
            }
        }
        facts
    }
}

impl Facts {
    pub fn view<'a>(&'a self, snapshot: &'a Snapshot) -> View<'a> {
        let Facts { silent, free, stalled } = self;
        View { snapshot, silent, free, stalled }
    }
}

/// What is known of everything that matters to a move.
pub struct View<'a> {
    pub snapshot: &'a Snapshot,
    /// Servers that do not answer, and why they are thought not to.
    pub silent: &'a BTreeMap<HostId, String>,
    pub free: &'a BTreeMap<DatastoreId, Bytes>,
    /// Disks whose requests wait, and why.
    pub stalled: &'a BTreeMap<VolumeId, String>,
}

impl View<'_> {
    /// Every server that has reported.
    pub fn sites(&self) -> Vec<Site> {
        let candidates = vm_power::candidates(self.snapshot, |_| false);
        let committed: BTreeMap<HostId, Bytes> =
            candidates.into_iter().map(|c| (c.host, c.committed)).collect();
        let hosts = self.snapshot.hosts.values().map(|host| &host.value);
        hosts
            .filter_map(|host| {
                let status = &self.snapshot.host_statuses.get(&host.id)?.value;
                Some(self.site(host, status, committed.get(&host.id).copied()))
            })
            .collect()
    }

    fn site(&self, host: &Host, status: &HostStatus, committed: Option<Bytes>) -> Site {
        let condition = |subject: &str| {
            let found = status.conditions.iter().find(|c| c.subject == subject);
            found.map(|c| c.problem.detail.clone())
        };
        let (qemu, unusable) = match &status.qemu {
            QemuInfo::Usable { version, .. } => (Some(version.clone()), condition("blockd")),
            QemuInfo::Unusable { reason } => (None, Some(reason.clone())),
        };
        let networks = condition("networks");
        let network = |network: &Network| {
            let vlan = || trunk::why_not(network, host.id, When::Now, self.snapshot);
            Some((network.id, networks.clone().or_else(vlan)?))
        };
        let datastores = self.snapshot.datastores.keys();
        Site {
            host: host.id,
            name: host.meta.name.to_string(),
            silent: self.silent.get(&host.id).cloned(),
            unusable,
            draining: host.drain.is_some(),
            capacity: status.capacity,
            committed: committed.unwrap_or_default(),
            emulated: !status.kvm.usable,
            hardware: status.hardware.clone(),
            qemu,
            daemon: status.daemon_version.clone(),
            without_datastores: datastores
                .filter_map(|id| Some((*id, why_not(*id, host.id, When::Now, self.snapshot)?)))
                .collect(),
            without_networks: self
                .snapshot
                .networks
                .values()
                .filter_map(|n| network(&n.value))
                .collect(),
        }
    }

    pub fn stores(&self) -> Stores {
        let datastores = self.snapshot.datastores.values().map(|d| &d.value);
        datastores
            .map(|datastore| {
                let store = Store {
                    name: datastore.meta.name.to_string(),
                    local_to: match datastore.sharing {
                        Sharing::Local(owner) => Some(owner),
                        Sharing::Shared { .. } => None,
                    },
                    free: self.free.get(&datastore.id).copied(),
                };
                (datastore.id, store)
            })
            .collect()
    }

    /// None for a VM that no server has.
    pub fn vm(&self, id: VmId) -> Option<MovingVm> {
        let vm = &self.snapshot.vms.get(&id)?.value;
        let placement = vm.placement?;
        let status = self.snapshot.vm_statuses.get(&id).map(|s| &s.value);
        let qemu = status.and_then(|s| s.qemu.as_ref());
        let disks = vm.spec.disks.iter();
        let volumes = disks.filter_map(|d| Some((d, self.snapshot.volumes.get(&d.volume)?)));
        let network = |id| self.snapshot.networks.get(&id).map(|n| n.value.meta.name.to_string());
        let networks = vm.spec.nics.iter().map(|nic| nic.network);
        Some(MovingVm {
            vm: id,
            name: vm.meta.name.to_string(),
            on: placement.host,
            vcpus: vm.spec.vcpus,
            memory: vm.spec.memory,
            machine: vm.spec.machine,
            hardware: vm.hardware.clone(),
            activity: activity(vm, status.map(|s| &s.phase), self.snapshot),
            qemu: qemu.map(|process| process.version.clone()),
            disks: volumes.map(|(disk, volume)| self.disk(disk, &volume.value)).collect(),
            networks: networks.map(|id| (id, network(id).unwrap_or(id.to_string()))).collect(),
            // No VM has such devices yet.
            passthrough: Vec::new(),
            held_by: self.held_by(id),
        })
    }

    /// Moves that the records tell of.
    pub fn in_flight(&self) -> Vec<InFlight> {
        let vms = self.snapshot.vms.values().map(|vm| &vm.value);
        vms.filter_map(|vm| {
            let migration = vm.migration.as_ref()?;
            let size = |id| self.snapshot.volumes.get(id).map_or(Bytes::ZERO, |v| v.value.size);
            let disks = migration.disks.iter();
            Some(InFlight {
                vm: vm.id,
                from: vm.placement?.host,
                to: migration.to,
                memory: Some(vm.spec.memory),
                space: disks.map(|(id, to)| (to.datastore, size(id))).collect(),
            })
        })
        .collect()
    }

    fn disk(&self, disk: &Disk, volume: &Volume) -> MovingDisk {
        let below = match volume.source {
            VolumeSource::LinkedVolume { .. } => chain::under(volume.source, self.snapshot).volumes,
            // What an image gives is at hand on every server.
            _ => Vec::new(),
        };
        MovingDisk {
            volume: volume.id,
            name: volume.meta.name.to_string(),
            datastore: volume.datastore,
            reads_through: below.into_iter().map(|v| v.datastore).collect(),
            // All that it may come to hold while it is copied.
            needs: volume.size,
            // Nobody mirrors what nobody writes; and clones may be linked to it.
            fixed: disk.read_only.then(|| "it is read-only".to_owned()),
            stalled: self.stalled.get(&volume.id).cloned(),
        }
    }

    fn held_by(&self, id: VmId) -> Option<String> {
        let subject = format!("vm/{id}");
        let mut tasks = self.snapshot.tasks.values().map(|t| &t.value);
        let task = tasks.find(|t| t.subject == subject && !t.state.is_over())?;
        Some(format!("task {} ({})", task.id, task.kind))
    }
}

fn activity(vm: &Vm, phase: Option<&Phase>, snapshot: &Snapshot) -> Activity {
    if is_stopped(vm, snapshot) {
        return Activity::Off;
    }
    let changing = |what: &str| Activity::Changing(what.to_owned());
    match phase {
        Some(Phase::Running) => Activity::Running,
        Some(Phase::Paused) => Activity::Paused,
        Some(Phase::Crashed) => Activity::Crashed,
        Some(Phase::ShuttingDown { .. }) => changing("shutting down"),
        Some(Phase::BackingOff { .. }) => changing("waiting to be started again after a failure"),
        Some(Phase::Starting | Phase::Stopped | Phase::Failed) | None => changing("starting"),
    }
}

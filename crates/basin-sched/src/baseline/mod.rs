//! Pure. The hardware that a VM gets when it is started, so that it can move later:
//! the best CPU model and the newest machine version that every server can give.
//!
//! "Every server" is every one of the same [class](CpuClass): a guest that runs on KVM
//! cannot go on by emulation, nor on a CPU of another maker. A VM keeps what it got
//! until it is stopped; a server that joins with less lowers what later starts get.

mod ranking;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use basin_model::HostId;
use basin_model::hardware::{CpuClass, GuestHardware, HardwareFacts, MachineVersion};
use basin_model::vm::{CpuModel, Machine};
use serde::Serialize;

pub use ranking::ranking;

/// A server, and what its QEMU can give.
#[derive(Debug, Clone, Copy)]
pub struct Server<'a> {
    pub host: HostId,
    pub name: &'a str,
    /// None: it has not said.
    pub hardware: Option<&'a HardwareFacts>,
}

/// What all servers of a class can give.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Baseline {
    pub class: CpuClass,
    /// The names of its servers.
    pub servers: Vec<String>,
    /// None when not even the lowest model is whole everywhere.
    pub cpu: Option<String>,
    /// The best model of any server, where that is better, and who cannot give it.
    pub cpu_held_back: Option<HeldBack<String>>,
    /// None when the servers' QEMUs have no version in common.
    pub machine: Option<MachineVersion>,
    pub machine_held_back: Option<HeldBack<MachineVersion>>,
}

/// Something better that some servers could give.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HeldBack<T> {
    pub better: T,
    /// Who cannot.
    pub by: Vec<(String, Lack)>,
}

/// Why a server cannot give something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lack {
    /// These CPU features.
    Features(Vec<String>),
    /// Its QEMU does not know it.
    Unknown,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lack::Features(features) => write!(f, "it lacks {}", features.join(", ")),
            Lack::Unknown => f.write_str("its QEMU does not know it"),
        }
    }
}

impl<T: fmt::Display> fmt::Display for HeldBack<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by: Vec<String> =
            self.by.iter().map(|(name, lack)| format!("{name}: {lack}")).collect();
        write!(f, "{} is not possible because of {}", self.better, by.join("; "))
    }
}

impl Baseline {
    /// What a server costs the others, for its page in the host list and the doctor.
    pub fn note(&self, server: &str) -> Option<String> {
        let lack = |by: &[(String, Lack)]| {
            by.iter().find(|(name, _)| name == server).map(|(_, lack)| lack.clone())
        };
        let cpu = self.cpu_held_back.as_ref().and_then(|held| {
            let now = self.cpu.as_deref().unwrap_or("none");
            let (better, lack) = (&held.better, lack(&held.by)?);
            Some(format!(
                "VMs that start anywhere in the cluster get the CPU model {now} instead of \
                 {better}, because this server cannot give that: {lack}"
            ))
        });
        let machine = self.machine_held_back.as_ref().and_then(|held| {
            lack(&held.by)?;
            let better = held.better;
            Some(format!(
                "VMs do not get the machine pc-q35-{better}, because this server's QEMU does \
                 not know it: upgrade it"
            ))
        });
        let notes: Vec<String> = cpu.into_iter().chain(machine).collect();
        (!notes.is_empty()).then(|| notes.join("; "))
    }
}

/// The baseline of each class that has a server.
pub fn baselines(servers: &[Server<'_>]) -> Vec<Baseline> {
    let mut classes: BTreeMap<&CpuClass, Vec<(&str, &HardwareFacts)>> = BTreeMap::new();
    for server in servers {
        if let Some(facts) = server.hardware {
            classes.entry(&facts.class).or_default().push((server.name, facts));
        }
    }
    classes.into_iter().map(|(class, members)| baseline(class, &members)).collect()
}

fn baseline(class: &CpuClass, members: &[(&str, &HardwareFacts)]) -> Baseline {
    let highest = |fits: &dyn Fn(&str) -> bool| {
        ranking(class).iter().rev().copied().find(|model| fits(model))
    };
    let cpu = highest(&|model| members.iter().all(|(_, facts)| facts.cpus.runs(model)));
    let best = highest(&|model| members.iter().any(|(_, facts)| facts.cpus.runs(model)));
    let cpu_held_back = best.filter(|best| cpu != Some(*best)).map(|better| {
        let without = members.iter().filter(|(_, facts)| !facts.cpus.runs(better));
        let by = without.map(|(name, facts)| {
            let features = facts
                .cpus
                .missing(better)
                .map(|missing| Lack::Features(missing.into_iter().map(str::to_owned).collect()));
            ((*name).to_owned(), features.unwrap_or(Lack::Unknown))
        });
        HeldBack { better: better.to_owned(), by: by.collect() }
    });
    let mut versions: Vec<MachineVersion> =
        members.iter().flat_map(|(_, facts)| facts.q35.iter().copied()).collect();
    versions.sort_unstable();
    let has = |facts: &HardwareFacts, version| facts.q35.contains(&version);
    let common = |v: &MachineVersion| members.iter().all(|(_, facts)| has(facts, *v));
    let machine = versions.iter().rev().copied().find(common);
    let newest = versions.last().copied().filter(|newest| machine != Some(*newest));
    let machine_held_back = newest.map(|better| {
        let without = members.iter().filter(|(_, facts)| !has(facts, better));
        let by = without.map(|(name, _)| ((*name).to_owned(), Lack::Unknown)).collect();
        HeldBack { better, by }
    });
    Baseline {
        class: class.clone(),
        servers: members.iter().map(|(name, _)| (*name).to_owned()).collect(),
        cpu: cpu.map(str::to_owned),
        cpu_held_back,
        machine,
        machine_held_back,
    }
}

/// What a VM gets that is started on `on`, one of `servers`, which are all there are.
/// None when that server has not said what it can give: then its QEMU decides, and
/// the VM cannot move until it is started again.
pub fn resolve(
    wanted: &CpuModel,
    machine: Machine,
    on: HostId,
    servers: &[Server<'_>],
) -> Option<GuestHardware> {
    let facts = servers.iter().find(|server| server.host == on)?.hardware?;
    let class = facts.class.clone();
    let baseline = baselines(servers).into_iter().find(|baseline| baseline.class == class)?;
    let cpu = match wanted {
        CpuModel::Named(name) => facts.cpus.versioned(name).to_owned(),
        CpuModel::Auto => automatic(&class, baseline.cpu, servers.len() > 1),
    };
    let machine_version = match machine {
        Machine::Q35 => baseline.machine,
        // QEMU has no versions of it.
        Machine::Microvm => None,
    };
    Some(GuestHardware { class, cpu, machine_version })
}

fn automatic(class: &CpuClass, baseline: Option<String>, cluster: bool) -> String {
    let lowest = || ranking(class).first().copied().unwrap_or(GuestHardware::HOST_CPU).to_owned();
    match class {
        // Nobody to move to: all of the server's CPU, and its speed.
        CpuClass::Kvm { .. } if !cluster => GuestHardware::HOST_CPU.to_owned(),
        _ => baseline.unwrap_or_else(lowest),
    }
}

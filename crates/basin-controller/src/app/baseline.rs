//! What the servers can give guests, as the inventory knows it (decides: `basin-sched`).

use basin_model::hardware::GuestHardware;
use basin_model::host::Condition;
use basin_model::task::Problem;
use basin_model::vm::Vm;
use basin_model::{HostId, Name};
use basin_sched::baseline::{Baseline, Server, baselines, resolve};

use super::inventory::Snapshot;

/// Every server there is: one that is away today takes VMs tomorrow.
fn servers(snapshot: &Snapshot) -> Vec<Server<'_>> {
    snapshot
        .hosts
        .iter()
        .map(|(id, host)| Server {
            host: *id,
            name: host.value.meta.name.as_str(),
            hardware: snapshot.host_statuses.get(id).and_then(|s| s.value.hardware.as_ref()),
        })
        .collect()
}

/// What the guest of a VM sees that is started on a server.
pub fn hardware(vm: &Vm, on: HostId, snapshot: &Snapshot) -> Option<GuestHardware> {
    resolve(&vm.spec.cpu_model, vm.spec.machine, on, &servers(snapshot))
}

/// What VMs that start now get, by class of servers.
pub fn of(snapshot: &Snapshot) -> Vec<Baseline> {
    baselines(&servers(snapshot))
}

/// What one server costs the others: a condition of it, for its page and the list.
/// `baselines` is the answer of [`of`], made once for a list.
pub fn condition(server: &Name, baselines: &[Baseline]) -> Option<Condition> {
    let detail = baselines.iter().find_map(|baseline| baseline.note(server.as_str()))?;
    let advice = "Running VMs are not touched. Start VMs with a named CPU model where they must \
                  have more, and keep those on the servers that can give it."
        .to_owned();
    let problem = Problem { code: "cpu-baseline".to_owned(), detail, advice };
    Some(Condition { subject: "cpu-baseline".to_owned(), problem })
}

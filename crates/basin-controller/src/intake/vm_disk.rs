//! Pure. Another disk for a VM.

use basin_api::vm::NewDisk;
use basin_model::task::Problem;
use basin_model::vm::{Disk, Vm};
use basin_model::volume::Volume;
use basin_store::records::TxnBuilder;

use super::vm::Disks;
use super::{Mint, Uses};
use crate::app::inventory::Snapshot;
use crate::app::problems;

/// A disk to add, and the volume to make for it, if one is.
pub struct Draft {
    pub disk: Disk,
    pub made: Vec<Volume>,
    pub txn: TxnBuilder,
}

pub fn add(
    vm: &Vm,
    wanted: &NewDisk,
    snapshot: &Snapshot,
    mint: &mut Mint<'_>,
) -> Result<Draft, Problem> {
    let mut uses = Uses::default();
    let mut disks = Disks::default();
    // The first number whose volume name is free: disks may have been taken off.
    let taken = |n: usize| {
        let name = format!("{}-disk{n}", vm.meta.name);
        snapshot.volumes.values().any(|v| v.value.meta.name.as_str() == name)
    };
    let n = (vm.spec.disks.len()..).find(|n| !taken(*n)).unwrap_or_default();
    disks.add(wanted, &vm.meta, n, vm.id, snapshot, &mut uses, mint)?;
    let Some(disk) = disks.attached.pop() else {
        return Err(problems::invalid("disk: nothing to add"));
    };
    Ok(Draft { disk, made: disks.made, txn: uses.into_txn().and(disks.txn) })
}

//! Pure. New virtual machines.

use basin_api::vm::{self as api, DiskChoice, NewDisk, NewNic, VmCreate};
use basin_model::image::ImageKind;
use basin_model::keys::{self, Kind};
use basin_model::task::Problem;
use basin_model::vm::{
    Boot, Cdrom, CpuModel, Disk, FailurePolicy, Machine, OnFailure, Power, PowerOff, Run, Vm,
    VmSpec,
};
use basin_model::volume::Volume;
use basin_model::{Bytes, Meta, Vcpus, VmId, VolumeId};
use basin_store::records::TxnBuilder;

use super::{Mint, Uses, cloud_init, meta, vm_nics, volume};
use crate::app::inventory::Snapshot;
use crate::app::problems;

const DISKS_MAX: usize = 32;
const CDROMS_MAX: usize = 4;
const VCPUS_MAX: u32 = 288;
const MEMORY_MIN: Bytes = Bytes::mib(32);
const MEMORY_MAX: Bytes = Bytes::gib(16 * 1024);
const COMMAND_LINE_MAX: usize = 2048;

/// A VM to make, with the volumes to make for it.
pub struct Draft {
    pub vm: Vm,
    pub volumes: Vec<Volume>,
    pub txn: TxnBuilder,
}

pub fn create(
    request: &VmCreate,
    snapshot: &Snapshot,
    mint: &mut Mint<'_>,
) -> Result<Draft, Problem> {
    let meta =
        meta::new(&snapshot.vms, &request.name, &request.description, &request.labels, mint)?;
    let id = VmId::from_uuid(mint.uuid());
    let mut uses = Uses::default();
    let boot = boot(&request.boot, request.machine, snapshot, &mut uses)?;
    let mut disks = Disks::default();
    for (n, disk) in request.disks.iter().enumerate() {
        disks.add(disk, &meta, n, id, snapshot, &mut uses, mint)?;
    }
    let cdroms = cdroms(&request.cdroms, snapshot, &mut uses)?;
    let default_nic = [NewNic { network: "default".to_owned(), mac: None, address: None }];
    let wanted_nics = request.nics.as_deref().unwrap_or(&default_nic);
    let (nics, nics_txn) = vm_nics::draft(wanted_nics, snapshot, &mut uses, mint)?;
    let cloud_init = request.cloud_init.as_ref().map(cloud_init::check).transpose()?;
    let machine = match request.machine {
        api::Machine::Q35 => Machine::Q35,
        api::Machine::Microvm => Machine::Microvm,
    };
    if machine == Machine::Microvm && (!cdroms.is_empty() || cloud_init.is_some()) {
        return Err(problems::invalid(
            "machine: a microvm has no CD-ROM drive, so neither ISO images nor cloud-init; use q35",
        ));
    }
    let vm = Vm {
        id,
        spec: VmSpec {
            vcpus: vcpus(request.vcpus)?,
            memory: memory(request.memory_bytes)?,
            cpu_model: cpu_model(request.cpu_model.as_deref())?,
            machine,
            boot,
            disks: disks.attached,
            cdroms,
            nics,
            cloud_init,
            policy: policy(request.policy),
        },
        meta,
        run: Run { power: Power::Off { how: PowerOff::Now }, epoch: 0, resets: 0 },
        placement: None,
        hardware: None,
        migration: None,
    };
    let txn =
        uses.into_txn().and(disks.txn).and(nics_txn).create(Kind::Vm.name(&vm.meta.name), &id);
    Ok(Draft { vm, volumes: disks.made, txn })
}

/// Disks as they are put together, with what reserves them.
#[derive(Default)]
pub(super) struct Disks {
    pub attached: Vec<Disk>,
    pub made: Vec<Volume>,
    pub txn: TxnBuilder,
}

impl Disks {
    /// Adds one as the VM's `n`-th (counted from 0).
    #[allow(clippy::too_many_arguments, reason = "one place, each of another kind")]
    pub fn add(
        &mut self,
        wanted: &NewDisk,
        vm: &Meta,
        n: usize,
        id: VmId,
        snapshot: &Snapshot,
        uses: &mut Uses,
        mint: &mut Mint<'_>,
    ) -> Result<(), Problem> {
        if n >= DISKS_MAX {
            return Err(problems::invalid(format!("disks: a VM has at most {DISKS_MAX}")));
        }
        let (volume, delete_with_vm) = match &wanted.disk {
            DiskChoice::Existing { volume } => {
                (existing(volume, wanted.read_only, snapshot, uses)?, false)
            }
            DiskChoice::New { source, format, datastore } => {
                let name = format!("{}-disk{n}", vm.name);
                let meta =
                    meta::new(&snapshot.volumes, &name, "", &vm.labels.clone().into(), mint)?;
                let choice =
                    volume::Choice { source, format: *format, datastore: datastore.as_deref() };
                let volume = volume::draft(choice, meta, snapshot, uses, mint)?;
                self.txn = std::mem::take(&mut self.txn).and(volume::records(&volume));
                let id = volume.id;
                self.made.push(volume);
                (id, true)
            }
        };
        if self.attached.iter().any(|d| d.volume == volume) {
            return Err(problems::invalid("disks: a volume is named twice"));
        }
        let serial = serial(wanted.serial.as_deref(), volume)?;
        self.txn = std::mem::take(&mut self.txn).create(keys::attachment(volume), &id);
        let read_only = wanted.read_only;
        self.attached.push(Disk { volume, read_only, serial, delete_with_vm });
        Ok(())
    }
}

fn existing(
    reference: &str,
    read_only: bool,
    snapshot: &Snapshot,
    uses: &mut Uses,
) -> Result<VolumeId, Problem> {
    let record = snapshot.ready_volume(reference)?;
    let id = record.value.id;
    if let Some(vm) = snapshot.attachments.get(&id).and_then(|vm| snapshot.vms.get(vm)) {
        let by = [format!("vm {}", vm.value.meta.name)];
        return Err(problems::in_use("volume", &record.value.meta.name, &by));
    }
    let clones: Vec<String> = snapshot.linked_to_volume(id);
    if !read_only && !clones.is_empty() {
        return Err(problems::in_use("volume", &record.value.meta.name, &clones));
    }
    uses.hold(Kind::Volume, id, record);
    uses.require_absent(keys::lock(Kind::Volume, id));
    Ok(id)
}

fn serial(wanted: Option<&str>, volume: VolumeId) -> Result<String, Problem> {
    let Some(text) = wanted else { return Ok(format!("basin-{}", volume.short())) };
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if (1..=20).contains(&text.len()) && text.chars().all(allowed) {
        return Ok(text.to_owned());
    }
    Err(problems::invalid(format!(
        "serial: '{text}' is not 1 to 20 of a-z, A-Z, 0-9, '.', '_', '-'"
    )))
}

pub(super) fn vcpus(n: u32) -> Result<Vcpus, Problem> {
    if (1..=VCPUS_MAX).contains(&n) {
        return Ok(Vcpus(n));
    }
    Err(problems::invalid(format!("vcpus: {n} is not from 1 to {VCPUS_MAX}")))
}

pub(super) fn memory(bytes: u64) -> Result<Bytes, Problem> {
    let memory = Bytes(bytes);
    if !(MEMORY_MIN..=MEMORY_MAX).contains(&memory) {
        return Err(problems::invalid(format!(
            "memory_bytes: {memory} is not from {MEMORY_MIN} to {MEMORY_MAX}"
        )));
    }
    if !memory.is_multiple_of(Bytes::mib(1)) {
        return Err(problems::invalid("memory_bytes: it is not a multiple of 1 MiB"));
    }
    Ok(memory)
}

pub(super) fn cpu_model(wanted: Option<&str>) -> Result<CpuModel, Problem> {
    // A comma would start a QEMU option of its own.
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    match wanted {
        None | Some("auto") => Ok(CpuModel::Auto),
        Some(name) if (1..=64).contains(&name.len()) && name.chars().all(allowed) => {
            Ok(CpuModel::Named(name.to_owned()))
        }
        Some(name) => Err(problems::invalid(format!("cpu_model: '{name}' is not a model's name"))),
    }
}

pub(super) fn policy(wanted: api::FailurePolicy) -> FailurePolicy {
    let choice = |c| match c {
        api::OnFailure::Restart => OnFailure::Restart,
        api::OnFailure::Stop => OnFailure::Stop,
        api::OnFailure::Leave => OnFailure::Leave,
    };
    FailurePolicy {
        guest_crash: choice(wanted.guest_crash),
        machine_death: choice(wanted.machine_death),
    }
}

pub(super) fn boot(
    wanted: &api::Boot,
    machine: api::Machine,
    snapshot: &Snapshot,
    uses: &mut Uses,
) -> Result<Boot, Problem> {
    let (kernel, initrd, command_line) = match wanted {
        api::Boot::Kernel { kernel, initrd, command_line } => (kernel, initrd, command_line),
        _ if machine == api::Machine::Microvm => {
            return Err(problems::invalid(
                "machine: a microvm has no firmware for disks; give it a kernel to boot, or use q35",
            ));
        }
        api::Boot::Bios => return Ok(Boot::Bios),
        api::Boot::Uefi => return Ok(Boot::Uefi),
    };
    if command_line.len() > COMMAND_LINE_MAX || command_line.chars().any(char::is_control) {
        return Err(problems::invalid(format!(
            "command_line: it is longer than {COMMAND_LINE_MAX} bytes or has control characters"
        )));
    }
    let mut image = |reference: &String, kind| {
        let (record, _) = snapshot.ready_image(reference, kind)?;
        uses.hold(Kind::Image, record.value.id, record);
        Ok(record.value.id)
    };
    Ok(Boot::Kernel {
        kernel: image(kernel, ImageKind::Kernel)?,
        initrd: initrd.as_ref().map(|i| image(i, ImageKind::Initrd)).transpose()?,
        command_line: command_line.clone(),
    })
}

pub(super) fn cdroms(
    wanted: &[String],
    snapshot: &Snapshot,
    uses: &mut Uses,
) -> Result<Vec<Cdrom>, Problem> {
    if wanted.len() > CDROMS_MAX {
        return Err(problems::invalid(format!("cdroms: a VM has at most {CDROMS_MAX}")));
    }
    let mut cdroms = Vec::new();
    for reference in wanted {
        let (record, _) = snapshot.ready_image(reference, ImageKind::Iso)?;
        uses.hold(Kind::Image, record.value.id, record);
        cdroms.push(Cdrom { image: record.value.id });
    }
    Ok(cdroms)
}

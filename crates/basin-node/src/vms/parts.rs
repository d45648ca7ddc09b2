//! What a machine stands on: exports, taps, a seed. Prepared for a launch, and taken away after.
//!
//! A note of what is about to be made is written first, beside the things
//! themselves, and goes last. So whoever finds the note takes away what it names,
//! and where there is no note there is nothing to take away.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use basin_blockd::control::{Export, Held, Layer};
use basin_model::image::ImageKind;
use basin_model::vm::{Boot, CpuModel, Placement, Vm};
use basin_model::{Generation, NicId, VmId};
use basin_net::Fabric;
use basin_qemu::{BootSpec, CdromSpec, DiskSpec, Engine, Machine, MachineSpec, NicSpec};
use basin_storage::{LayerFile, SeedInput, build_seed};
use basin_store::Store;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

pub use super::arriving::Arriving;
use super::chain;
use super::decide::StartFailure;
use crate::disks::Disks;
use crate::files;
use crate::images::Images;
use crate::networks::Networks;
use crate::problem::{A_FEW_TIMES, Explain, Unready, problem};

/// More queues than this do not make a disk faster.
const MOST_QUEUES: u32 = 4;

/// Makes and takes away; shared by all VMs.
pub struct Parts {
    pub store: Arc<dyn Store>,
    pub engine: Arc<dyn Engine>,
    pub fabric: Arc<dyn Fabric>,
    pub disks: Arc<dyn Disks>,
    pub images: Arc<Images>,
    pub networks: Networks,
    pub state_dir: PathBuf,
    pub run_dir: PathBuf,
    /// A server that has just booted has many VMs to start; all at once takes longest.
    pub starts: Semaphore,
}

/// What may be there for a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    pub vm: VmId,
    pub generation: Generation,
    pub exports: Vec<Export>,
    pub nics: Vec<NicId>,
}

/// Everything about a machine that is to be, before anything of it is made.
pub(super) struct Plan {
    pub(super) note: Note,
    boot: BootSpec,
    cdroms: Vec<CdromSpec>,
    uid: u32,
}

pub(super) fn failed(error: impl Explain) -> StartFailure {
    let problem = error.problem();
    StartFailure {
        message: format!("{}; {}", problem.detail, problem.advice),
        tries: error.tries(),
    }
}

fn io_failed(what: &str, path: &Path, error: &io::Error) -> Unready {
    let detail = format!("cannot {what} {}: {error}", path.display());
    let problem =
        problem("file-refused", detail, "look at the file system's free space and rights");
    Unready { problem, tries: A_FEW_TIMES }
}

impl Parts {
    /// Notes are in a directory of their own: those of the VMs belong to their QEMU.
    fn note_dir(&self) -> PathBuf {
        self.run_dir.join("parts")
    }

    fn note_path(&self, vm: VmId) -> PathBuf {
        self.note_dir().join(format!("{vm}.json"))
    }

    fn vm_dir(&self, vm: VmId) -> PathBuf {
        self.state_dir.join("vms").join(vm.to_string())
    }

    /// Everything that may be left from before.
    pub fn notes(&self) -> io::Result<Vec<Note>> {
        std::fs::create_dir_all(self.note_dir())?;
        let mut notes = Vec::new();
        for entry in std::fs::read_dir(self.note_dir())? {
            let name = entry?.file_name();
            let vm = name.to_str().and_then(|n| n.strip_suffix(".json")?.parse().ok());
            if let Some(vm) = vm {
                notes.extend(self.read_note(vm)?);
            }
        }
        Ok(notes)
    }

    fn read_note(&self, vm: VmId) -> io::Result<Option<Note>> {
        let bytes = match std::fs::read(self.note_path(vm)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let note = serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            // Only a power failure leaves half a note, and it takes all that the
            // note could name with it.
            tracing::warn!(%vm, %error, "half a note of what a VM stands on");
            Note { vm, generation: Generation(0), exports: vec![], nics: vec![] }
        });
        Ok(Some(note))
    }

    pub(super) fn note(&self, vm: VmId) -> Result<Option<Note>, Unready> {
        self.read_note(vm).map_err(|e| io_failed("read", &self.note_path(vm), &e))
    }

    pub fn present(&self, vm: VmId) -> bool {
        self.note_path(vm).exists()
    }

    /// Starts the machine. After an error nothing of it is left, unless taking it
    /// away failed as well: then the note is still there.
    pub async fn launch(
        &self,
        vm: &Vm,
        placement: Placement,
    ) -> Result<Arc<dyn Machine>, StartFailure> {
        let plan = self.plan(vm, placement.generation, None).await.map_err(failed)?;
        self.networks.ready(&vm.spec.nics).await.map_err(failed)?;
        let _turn = self.starts.acquire().await;
        let launched = async {
            let (spec, taps) = self.make(vm, plan).await.map_err(failed)?;
            self.engine.launch(&spec, taps).await.map_err(failed)
        };
        let launched = launched.await;
        if launched.is_err()
            && let Err(error) = self.dismantle(vm.id).await
        {
            let why = &error.problem.detail;
            tracing::warn!(vm = %vm.id, %why, "cannot take away what a failed start left");
        }
        launched
    }

    /// `arriving`: for a guest that comes from another server.
    pub(super) async fn plan(
        &self,
        vm: &Vm,
        generation: Generation,
        arriving: Option<&Arriving<'_>>,
    ) -> Result<Plan, Unready> {
        let uid = self.engine.uid(vm.id).await.map_err(unready)?;
        let (store, images) = (&*self.store, &*self.images);
        let queues = u16::try_from(vm.spec.vcpus.0.clamp(1, MOST_QUEUES)).unwrap_or(1);
        let mut exports = Vec::new();
        for disk in &vm.spec.disks {
            let moved = arriving.and_then(|arriving| arriving.moved_to(disk.volume));
            let layers = match moved {
                Some(to) => {
                    vec![images.datastores.get(to.datastore)?.volume(disk.volume, to.format)]
                }
                None => chain::layers(store, images, disk.volume).await?,
            };
            exports.push(Export {
                volume: disk.volume,
                generation,
                socket: self.run_dir.join("blockd").join(format!("{}.sock", disk.volume)),
                uid,
                layers: layers.into_iter().map(layer).collect(),
                read_only: disk.read_only,
                serial: disk.serial.clone(),
                queues,
                held: match arriving {
                    Some(_) if !disk.read_only => Held::WhileRunning,
                    _ => Held::Always,
                },
            });
        }
        let file = async |id, kind| Ok(chain::image_file(store, images, id, kind).await?.path);
        let mut cdroms = Vec::new();
        for cdrom in &vm.spec.cdroms {
            cdroms.push(CdromSpec { path: file(cdrom.image, ImageKind::Iso).await? });
        }
        let boot = match &vm.spec.boot {
            Boot::Bios => BootSpec::Bios,
            Boot::Uefi => BootSpec::Uefi { vars: self.vm_dir(vm.id).join("nvram.fd") },
            Boot::Kernel { kernel, initrd, command_line } => BootSpec::Kernel {
                kernel: file(*kernel, ImageKind::Kernel).await?,
                initrd: match initrd {
                    Some(id) => Some(file(*id, ImageKind::Initrd).await?),
                    None => None,
                },
                command_line: command_line.clone(),
            },
        };
        let nics = vm.spec.nics.iter().map(|nic| nic.id).collect();
        let note = Note { vm: vm.id, generation, exports, nics };
        Ok(Plan { note, boot, cdroms, uid })
    }

    pub(super) fn write_note(&self, note: &Note) -> Result<(), Unready> {
        let path = self.note_path(note.vm);
        let json = serde_json::to_vec(note).map_err(io::Error::other);
        json.and_then(|json| files::write_briefly(&path, &json, 0o600, None))
            .map_err(|e| io_failed("write", &path, &e))
    }

    /// Makes what the machine stands on.
    pub(super) async fn make(
        &self,
        vm: &Vm,
        plan: Plan,
    ) -> Result<(MachineSpec, Vec<OwnedFd>), Unready> {
        self.write_note(&plan.note)?;
        for export in &plan.note.exports {
            self.disks.open(export).await.map_err(unready)?;
        }
        let mut cdroms = plan.cdroms;
        if let Some(seed) = self.seed(vm, plan.uid)? {
            cdroms.push(CdromSpec { path: seed });
        }
        let mut taps: Vec<OwnedFd> = Vec::new();
        for nic in &vm.spec.nics {
            let tap = self.fabric.open_tap(nic.network, nic.id, nic.mac, nic.address).await;
            taps.push(tap.map_err(unready)?);
        }
        let disk = |e: &Export| DiskSpec { socket: e.socket.clone(), queues: e.queues };
        let spec = MachineSpec {
            vm: vm.id,
            generation: plan.note.generation,
            name: vm.meta.name.to_string(),
            vcpus: vm.spec.vcpus,
            memory: vm.spec.memory,
            cpu_model: cpu_model(vm),
            machine: vm.spec.machine,
            machine_version: vm.hardware.as_ref().and_then(|h| h.machine_version),
            boot: plan.boot,
            disks: plan.note.exports.iter().map(disk).collect(),
            cdroms,
            nics: vm.spec.nics.iter().map(|nic| NicSpec { mac: nic.mac }).collect(),
        };
        Ok((spec, taps))
    }

    /// The cloud-init seed, made anew for each start from what the VM says now.
    fn seed(&self, vm: &Vm, uid: u32) -> Result<Option<PathBuf>, Unready> {
        let Some(cloud_init) = &vm.spec.cloud_init else { return Ok(None) };
        let macs: Vec<_> = vm.spec.nics.iter().map(|nic| nic.mac).collect();
        let instance_id = &vm.id.to_string();
        let hostname = &vm.meta.name;
        let input = SeedInput { instance_id, hostname, cloud_init, macs: &macs };
        let iso = build_seed(&input).map_err(unready)?;
        let path = self.vm_dir(vm.id).join("seed.iso");
        // It has password hashes in it: for the VM's own user, and nobody else.
        files::write_briefly(&path, &iso, 0o400, Some(uid))
            .map_err(|e| io_failed("write", &path, &e))?;
        Ok(Some(path))
    }

    /// Takes away what the note names. Idempotent.
    pub async fn dismantle(&self, vm: VmId) -> Result<(), Unready> {
        let Some(note) = self.note(vm)? else { return Ok(()) };
        for nic in note.nics {
            self.fabric.close_tap(nic).await.map_err(unready)?;
        }
        for export in note.exports {
            // One that another server was to fill.
            self.disks.revoke(export.volume, note.generation).await.map_err(unready)?;
            self.disks.close(export.volume, note.generation).await.map_err(unready)?;
        }
        let path = self.note_path(vm);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_failed("remove", &path, &e)),
            _ => Ok(()),
        }
    }

    /// Removes what a VM that is no more left in the state directory.
    pub async fn forget(&self, vm: VmId) -> Result<(), Unready> {
        self.engine.forget(vm).await.map_err(unready)?;
        let path = self.vm_dir(vm);
        match std::fs::remove_dir_all(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_failed("remove", &path, &e)),
            _ => Ok(()),
        }
    }
}

/// What the start fixed; without it, QEMU's own choice of today.
fn cpu_model(vm: &Vm) -> CpuModel {
    match &vm.hardware {
        Some(hardware) => CpuModel::Named(hardware.cpu.clone()),
        None => vm.spec.cpu_model.clone(),
    }
}

fn layer(file: LayerFile) -> Layer {
    Layer { path: file.path, format: file.format }
}

pub(super) fn unready(error: impl Explain) -> Unready {
    Unready { problem: error.problem(), tries: error.tries() }
}

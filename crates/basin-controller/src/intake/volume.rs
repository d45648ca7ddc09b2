//! Pure. New volumes, alone or for a VM.

use basin_api::volume::{self as api, CloneKind, VolumeCreate, VolumeSource as Wanted};
use basin_model::image::ImageKind;
use basin_model::keys::{self, Kind};
use basin_model::task::Problem;
use basin_model::volume::{Volume, VolumeFormat, VolumeSource, VolumeState};
use basin_model::{Bytes, DatastoreId, Meta, VolumeId};
use basin_store::records::TxnBuilder;

use super::{Mint, Uses, chain, meta, reach};
use crate::app::inventory::Snapshot;
use crate::app::{holds, problems};

/// The largest volume: what qcow2 with 64 KiB clusters can address, and then some left.
const MAX_SIZE: Bytes = Bytes::gib(64 * 1024);

/// A volume to make.
pub struct Draft {
    pub volume: Volume,
    pub txn: TxnBuilder,
}

pub fn create(
    request: &VolumeCreate,
    snapshot: &Snapshot,
    mint: &mut Mint<'_>,
) -> Result<Draft, Problem> {
    let meta =
        meta::new(&snapshot.volumes, &request.name, &request.description, &request.labels, mint)?;
    let mut uses = Uses::default();
    let choice = Choice {
        source: &request.source,
        format: request.format,
        datastore: request.datastore.as_deref(),
    };
    let volume = draft(choice, meta, snapshot, &mut uses, mint)?;
    let txn = uses.into_txn().and(records(&volume));
    Ok(Draft { volume, txn })
}

/// The records of a new volume, its name with it.
pub(super) fn records(volume: &Volume) -> TxnBuilder {
    TxnBuilder::new()
        .create(Kind::Volume.name(&volume.meta.name), &volume.id)
        .create(keys::volume(volume.id), volume)
}

/// What a request says of a new volume.
#[derive(Clone, Copy)]
pub(super) struct Choice<'a> {
    pub source: &'a Wanted,
    pub format: Option<api::VolumeFormat>,
    pub datastore: Option<&'a str>,
}

pub(super) fn draft(
    choice: Choice<'_>,
    meta: Meta,
    snapshot: &Snapshot,
    uses: &mut Uses,
    mint: &mut Mint<'_>,
) -> Result<Volume, Problem> {
    let origin = origin(choice.source, snapshot, uses)?;
    let datastore = match (choice.datastore, origin.home) {
        (Some(reference), _) => snapshot.ready_datastore(reference)?,
        (None, Some(home)) => snapshot.datastore(&home.to_string())?,
        (None, None) => snapshot.ready_datastore("default")?,
    };
    // An image can be fetched by any server; a volume is where it is.
    if let VolumeSource::Volume { .. } | VolumeSource::LinkedVolume { .. } = origin.source
        && let Some(home) = origin.home.filter(|home| *home != datastore.value.id)
    {
        if origin.linked {
            return Err(problems::invalid(
                "datastore: a linked clone is in the datastore of its source; ask for a full clone",
            ));
        }
        let any = datastore.value.sharing.maker();
        reach::choose(&[datastore.value.id, home], any, snapshot)?;
    }
    let format = format(choice.format, origin.linked)?;
    let size = size(&origin)?;
    uses.hold(Kind::Datastore, datastore.value.id, datastore);
    Ok(Volume {
        id: VolumeId::from_uuid(mint.uuid()),
        meta,
        datastore: datastore.value.id,
        format,
        size,
        source: origin.source,
        state: VolumeState::Creating,
    })
}

/// Where the content comes from, resolved.
struct Origin {
    source: VolumeSource,
    linked: bool,
    home: Option<DatastoreId>,
    /// Of the content.
    least: Bytes,
    wanted: Option<u64>,
}

fn origin(wanted: &Wanted, snapshot: &Snapshot, uses: &mut Uses) -> Result<Origin, Problem> {
    match wanted {
        Wanted::Blank { size_bytes } => Ok(Origin {
            source: VolumeSource::Blank,
            linked: false,
            home: None,
            least: Bytes::ZERO,
            wanted: Some(*size_bytes),
        }),
        Wanted::Image { image, clone, size_bytes } => {
            let (record, content) = snapshot.ready_image(image, ImageKind::Disk)?;
            uses.hold(Kind::Image, record.value.id, record);
            let image = record.value.id;
            let linked = *clone == CloneKind::Linked;
            Ok(Origin {
                source: match clone {
                    CloneKind::Linked => VolumeSource::LinkedImage { image },
                    CloneKind::Full => VolumeSource::Image { image },
                },
                linked,
                home: Some(record.value.datastore),
                least: content.virtual_size,
                wanted: *size_bytes,
            })
        }
        Wanted::Volume { volume, clone, size_bytes } => {
            let record = snapshot.ready_volume(volume)?;
            let linked = *clone == CloneKind::Linked;
            if linked {
                linkable(&record.value, snapshot, uses)?;
                uses.seal(Kind::Volume, record.value.id, record);
            } else {
                still(record.value.id, snapshot, uses)?;
                uses.hold(Kind::Volume, record.value.id, record);
                uses.lock(Kind::Volume, record.value.id);
            }
            let volume = record.value.id;
            Ok(Origin {
                source: match clone {
                    CloneKind::Linked => VolumeSource::LinkedVolume { volume },
                    CloneKind::Full => VolumeSource::Volume { volume },
                },
                linked,
                home: Some(record.value.datastore),
                least: record.value.size,
                wanted: *size_bytes,
            })
        }
    }
}

/// A volume is copied only while nothing writes to it.
fn still(volume: VolumeId, snapshot: &Snapshot, uses: &mut Uses) -> Result<(), Problem> {
    let Some(vm) = snapshot.attachments.get(&volume).and_then(|vm| snapshot.vms.get(vm)) else {
        return Ok(());
    };
    // One that moves may have been shut down by its guest, with its disk half way.
    holds::free(&vm.value, snapshot)?;
    uses.require_absent(keys::lock(Kind::Vm, vm.value.id));
    if super::vm_patch::is_stopped(&vm.value, snapshot) {
        return Ok(());
    }
    let advice = "Shut it down first; live clones come with snapshots.";
    Err(problems::wrong_state("vm", &vm.value.meta.name, "running on that volume", advice))
}

/// Whoever links to a volume fixes its content, so no VM may have it writable.
fn linkable(volume: &Volume, snapshot: &Snapshot, uses: &mut Uses) -> Result<(), Problem> {
    match snapshot.attachments.get(&volume.id).and_then(|vm| snapshot.vms.get(vm)) {
        None => uses.require_absent(keys::attachment(volume.id)),
        Some(vm) => {
            let mut disks = vm.value.spec.disks.iter();
            if disks.any(|d| d.volume == volume.id && !d.read_only) {
                let by = [format!("vm {}", vm.value.meta.name)];
                return Err(problems::in_use("volume", &volume.meta.name, &by));
            }
        }
    }
    let depth = chain::under(volume.source, snapshot).volumes.len();
    if chain::falls_through(volume) && depth + 1 >= chain::MAX_DEPTH {
        return Err(problems::invalid(format!(
            "source: volume '{}' is the end of a chain of {} already; make a full clone",
            volume.meta.name,
            chain::MAX_DEPTH
        )));
    }
    Ok(())
}

fn format(wanted: Option<api::VolumeFormat>, linked: bool) -> Result<VolumeFormat, Problem> {
    match (wanted, linked) {
        (Some(api::VolumeFormat::Raw), true) => {
            Err(problems::invalid("format: a linked clone is qcow2; leave it out or clone in full"))
        }
        (Some(api::VolumeFormat::Qcow2), _) | (None, true) => Ok(VolumeFormat::Qcow2),
        (Some(api::VolumeFormat::Raw), false) | (None, false) => Ok(VolumeFormat::Raw),
    }
}

fn size(origin: &Origin) -> Result<Bytes, Problem> {
    let size = origin.wanted.map_or(origin.least, Bytes);
    check_size(size)?;
    if size < origin.least {
        return Err(problems::invalid(format!(
            "size_bytes: {size} is less than the source's {}",
            origin.least
        )));
    }
    Ok(size)
}

/// Any volume's size.
pub fn check_size(size: Bytes) -> Result<(), Problem> {
    if size == Bytes::ZERO || !size.is_multiple_of(Volume::SECTOR) {
        let sector = Volume::SECTOR;
        return Err(problems::invalid(format!(
            "size_bytes: {} is not a positive multiple of {sector}",
            size.get()
        )));
    }
    if size > MAX_SIZE {
        return Err(problems::invalid(format!("size_bytes: {size} is more than {MAX_SIZE}")));
    }
    Ok(())
}

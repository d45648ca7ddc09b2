//! Volumes.

use basin_api::volume::{Volume, VolumeFormat, VolumeState};
use basin_model::volume as model;
use basin_store::records::Versioned;

use super::{meta, reference};
use crate::app::inventory::Snapshot;

pub fn volume(record: &Versioned<model::Volume>, snapshot: &Snapshot) -> Volume {
    let volume = &record.value;
    let datastore = snapshot.datastores.get(&volume.datastore).map(|d| &d.value.meta.name);
    let vm = snapshot.attachments.get(&volume.id);
    Volume {
        meta: meta(volume.id, &volume.meta, record.revision),
        datastore: reference(volume.datastore, datastore),
        format: format(volume.format),
        size_bytes: volume.size.get(),
        allocated_bytes: None,
        backing: backing(volume, snapshot),
        state: match volume.state {
            model::VolumeState::Creating => VolumeState::Creating,
            model::VolumeState::Ready => VolumeState::Ready,
            model::VolumeState::Deleting => VolumeState::Deleting,
        },
        vm: vm.map(|id| reference(id, snapshot.vms.get(id).map(|vm| &vm.value.meta.name))),
    }
}

fn backing(volume: &model::Volume, snapshot: &Snapshot) -> Option<String> {
    match volume.source {
        model::VolumeSource::LinkedImage { image } => {
            let name = snapshot.images.get(&image).map(|i| i.value.meta.name.to_string());
            Some(format!("image/{}", name.unwrap_or_else(|| image.to_string())))
        }
        model::VolumeSource::LinkedVolume { volume } => {
            let name = snapshot.volumes.get(&volume).map(|v| v.value.meta.name.to_string());
            Some(format!("volume/{}", name.unwrap_or_else(|| volume.to_string())))
        }
        _ => None,
    }
}

pub fn format(format: model::VolumeFormat) -> VolumeFormat {
    match format {
        model::VolumeFormat::Raw => VolumeFormat::Raw,
        model::VolumeFormat::Qcow2 => VolumeFormat::Qcow2,
    }
}

pub fn format_word(format: model::VolumeFormat) -> &'static str {
    match format {
        model::VolumeFormat::Raw => "raw",
        model::VolumeFormat::Qcow2 => "qcow2",
    }
}

//! Pure. Who uses a thing: what a refusal to delete it names.

use basin_model::volume::{Volume, VolumeSource, VolumeState};
use basin_model::{DatastoreId, ImageId, NetworkId, VolumeId};

use super::vm_patch::images_of;
use crate::app::inventory::Snapshot;

impl Snapshot {
    /// Volumes whose reads fall through to the volume.
    pub fn linked_to_volume(&self, id: VolumeId) -> Vec<String> {
        let links =
            |source| matches!(source, VolumeSource::LinkedVolume { volume } if volume == id);
        let volumes = self.volumes.values().map(|v| &v.value);
        volumes.filter(|v| links(v.source)).map(|v| format!("volume {}", v.meta.name)).collect()
    }

    pub fn users_of_image(&self, id: ImageId) -> Vec<String> {
        let needs = |v: &Volume| match v.source {
            VolumeSource::LinkedImage { image } => image == id,
            // Only while it is being copied.
            VolumeSource::Image { image } => image == id && v.state == VolumeState::Creating,
            _ => false,
        };
        let volumes = self.volumes.values().map(|v| &v.value);
        let vms = self.vms.values().map(|vm| &vm.value);
        volumes
            .filter(|v| needs(v))
            .map(|v| format!("volume {}", v.meta.name))
            .chain(
                vms.filter(|vm| images_of(vm).any(|image| image == id))
                    .map(|vm| format!("vm {}", vm.meta.name)),
            )
            .collect()
    }

    pub fn users_of_network(&self, id: NetworkId) -> Vec<String> {
        let vms = self.vms.values().map(|vm| &vm.value);
        vms.filter(|vm| vm.spec.nics.iter().any(|n| n.network == id))
            .map(|vm| format!("vm {}", vm.meta.name))
            .collect()
    }

    pub fn users_of_datastore(&self, id: DatastoreId) -> Vec<String> {
        let volumes = self.volumes.values().map(|v| &v.value);
        let images = self.images.values().map(|i| &i.value);
        volumes
            .filter(|v| v.datastore == id)
            .map(|v| format!("volume {}", v.meta.name))
            .chain(images.filter(|i| i.datastore == id).map(|i| format!("image {}", i.meta.name)))
            .collect()
    }
}

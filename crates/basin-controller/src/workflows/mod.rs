//! Everything that takes long, each a list of steps that can be repeated and undone.
//!
//! Open one: its parameters, then its steps in order, then their bodies. What a
//! workflow needs to itself is reserved in the transaction that starts it, by the
//! function in `app` that starts it; the last step lets go.

pub mod image_delete;
pub mod image_import;
pub mod observe;
pub mod vm_create;
pub mod vm_delete;
pub mod vm_disk_add;
pub mod vm_power_change;
pub mod vm_power_on;
pub mod volume_create;
pub mod volume_delete;
pub mod volume_grow;
pub mod volumes;

use crate::app::Services;
use crate::workflow::Registry;

/// Every workflow there is.
pub fn registry() -> Registry<Services> {
    Registry::new()
        .with::<image_delete::ImageDelete>()
        .with::<image_import::ImageImport>()
        .with::<vm_create::VmCreate>()
        .with::<vm_delete::VmDelete>()
        .with::<vm_disk_add::VmDiskAdd>()
        .with::<vm_power_change::VmPowerChange>()
        .with::<vm_power_on::VmPowerOn>()
        .with::<volume_create::VolumeCreate>()
        .with::<volume_delete::VolumeDelete>()
        .with::<volume_grow::VolumeGrow>()
}

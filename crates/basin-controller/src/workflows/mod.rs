//! Everything that takes long, each a list of steps that can be repeated and undone.
//!
//! Open one: its parameters, then its steps in order, then their bodies. What a
//! workflow needs to itself is reserved in the transaction that starts it, by the
//! function in `app` that starts it; the last step lets go.

pub mod datastore_create;
pub mod image_delete;
pub mod image_import;
pub mod observe;
pub mod vm_create;
pub mod vm_delete;
pub mod vm_disk_add;
pub mod vm_migrate;
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
        .with::<datastore_create::DatastoreCreate>()
        .with::<image_delete::ImageDelete>()
        .with::<image_import::ImageImport>()
        .with::<vm_create::VmCreate>()
        .with::<vm_delete::VmDelete>()
        .with::<vm_disk_add::VmDiskAdd>()
        .with::<vm_migrate::VmMigrate>()
        .with::<vm_power_change::VmPowerChange>()
        .with::<vm_power_on::VmPowerOn>()
        .with::<volume_create::VolumeCreate>()
        .with::<volume_delete::VolumeDelete>()
        .with::<volume_grow::VolumeGrow>()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The end-to-end tests know the binary only, and cut off each step of this list.
    #[test]
    fn the_list_that_the_fault_tests_go_by_is_whole() {
        let list = include_str!("../../../basin-e2e/workflows.txt");
        let lines = list.lines().filter(|l| !l.starts_with('#') && !l.is_empty());
        let listed: Vec<String> = lines.map(str::to_owned).collect();
        let registry = registry();
        let line = |(kind, steps): (&str, Vec<&str>)| format!("{kind} {}", steps.join(" "));
        let known: Vec<String> = registry.kinds().map(line).collect();
        assert_eq!(listed, known, "bring crates/basin-e2e/workflows.txt up to date");
    }
}

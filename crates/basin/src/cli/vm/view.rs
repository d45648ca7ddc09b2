//! Pure. How a VM looks to people.

use basin_api::vm::{Boot, Disk, Usage, Vm};
use jiff::Timestamp;

use crate::cli::table::Sheet;
use crate::cli::text::{age, seconds, size};
use crate::cli::view::{View, meta_sheet, name, word};

impl View for Vm {
    const COLUMNS: &[&str] = &["NAME", "STATE", "CPUS", "MEMORY", "ADDRESS", "HOST", "AGE"];

    fn label(&self) -> &str {
        &self.meta.name
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        let addresses: Vec<_> = self.nics.iter().map(|n| n.address.clone()).collect();
        vec![
            self.meta.name.clone(),
            word(&self.status.state),
            self.hardware.vcpus.to_string(),
            size(self.hardware.memory_bytes),
            addresses.join(","),
            self.status.host.as_ref().map(name).unwrap_or_default(),
            age(now, &self.meta.created_at),
        ]
    }

    fn sheet(&self, now: Timestamp) -> Sheet {
        let status = &self.status;
        let mut sheet = meta_sheet(&self.meta, now);
        let since = status.since.as_deref().map(|s| format!(" for {}", age(now, s)));
        sheet
            .pair("State", format!("{}{}", word(&status.state), since.unwrap_or_default()))
            .pair("Wanted", word(&self.wanted))
            .some("Host", status.host.as_ref().map(name))
            .some(
                "Moves to",
                self.migration.as_ref().map(|m| format!("{} (task {})", name(&m.to), m.task)),
            )
            .some(
                "Last failure",
                status
                    .last_failure
                    .as_ref()
                    .map(|f| format!("{}: {} ({} ago)", f.kind, f.message, age(now, &f.at))),
            )
            .some(
                "Failures",
                (status.failures > 0).then(|| format!("{} in a row", status.failures)),
            )
            .pair("CPUs", format!("{} ({})", self.hardware.vcpus, self.hardware.cpu_model))
            .pair("Memory", size(self.hardware.memory_bytes))
            .pair("Machine", word(&self.hardware.machine))
            .pair("Boot", boot(&self.hardware.boot))
            .pair(
                "On failure",
                format!(
                    "{} when the guest crashes, {} when the machine dies",
                    word(&self.policy.guest_crash),
                    word(&self.policy.machine_death)
                ),
            )
            .some("Cloud-init", self.cloud_init.then_some("yes"))
            .some(
                "QEMU",
                status.qemu.as_ref().map(|q| {
                    format!(
                        "{} with {}, process {}, up for {}",
                        q.version,
                        q.accelerator,
                        q.pid,
                        age(now, &q.started_at)
                    )
                }),
            );
        if let Some(usage) = &status.usage {
            figures(&mut sheet, usage);
        }
        let disks: Vec<_> = self.disks.iter().map(disk).collect();
        let cdroms: Vec<_> = self.cdroms.iter().map(|c| vec![name(c)]).collect();
        let nics: Vec<_> = self
            .nics
            .iter()
            .map(|n| vec![name(&n.network), n.address.clone(), n.mac.clone()])
            .collect();
        sheet
            .section("Disks", &["VOLUME", "SIZE", "FORMAT", "SERIAL", "NOTES"], &disks)
            .section("CD-ROMs", &["IMAGE"], &cdroms)
            .section("Interfaces", &["NETWORK", "ADDRESS", "MAC"], &nics);
        sheet
    }
}

fn boot(boot: &Boot) -> String {
    match boot {
        Boot::Bios => "BIOS".to_owned(),
        Boot::Uefi => "UEFI".to_owned(),
        Boot::Kernel { kernel, initrd, command_line } => {
            let initrd = initrd.as_ref().map(|i| format!(" with {i}")).unwrap_or_default();
            format!("kernel {kernel}{initrd}: {command_line}")
        }
    }
}

fn disk(disk: &Disk) -> Vec<String> {
    let mut notes = Vec::new();
    if disk.read_only {
        notes.push("read-only");
    }
    if !disk.delete_with_vm {
        notes.push("stays when the VM is deleted");
    }
    vec![
        name(&disk.volume),
        size(disk.size_bytes),
        word(&disk.format),
        disk.serial.clone(),
        notes.join(", "),
    ]
}

fn figures(sheet: &mut Sheet, usage: &Usage) {
    sheet
        .pair("CPU time", seconds(usage.cpu_milliseconds / 1000))
        .pair("Memory in use", size(usage.resident_bytes))
        .some("Free in guest", usage.guest_available_bytes.or(usage.guest_free_bytes).map(size))
        .pair(
            "Disk",
            format!(
                "{} read, {} written",
                size(usage.disk_read_bytes),
                size(usage.disk_written_bytes)
            ),
        )
        .pair(
            "Network",
            format!(
                "{} received, {} sent",
                size(usage.network_received_bytes),
                size(usage.network_sent_bytes)
            ),
        );
    for reason in &usage.stalled {
        sheet.pair("Stalled", reason);
    }
    if let Some(guest) = &usage.guest {
        sheet
            .some("Guest name", guest.hostname.as_deref())
            .some("Guest system", guest.os.as_deref())
            .pair("Guest addresses", guest.addresses.join(" "));
    }
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;

//! `basin host`.

use basin_api::host::Host;
use clap::Subcommand;
use jiff::Timestamp;

use super::error::CliError;
use super::meta::MetaCommand;
use super::session::Session;
use super::table::Sheet;
use super::text::{age, size};
use super::view::{View, meta_sheet};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List servers and what their VMs take of them
    #[command(visible_alias = "ls")]
    List,
    /// Show one in full: its hardware, QEMU, and why KVM is or is not used
    Show { host: String },
    #[command(flatten)]
    Meta(MetaCommand),
}

impl Command {
    pub async fn run(self, session: &Session) -> Result<(), CliError> {
        match self {
            Command::List => session.list::<Host>(&[].into()).await,
            Command::Show { host } => session.show::<Host>(&host).await,
            Command::Meta(command) => command.run::<Host>(session).await,
        }
    }
}

impl View for Host {
    const COLUMNS: &[&str] =
        &["NAME", "VMS", "CPUS", "VCPUS", "MEMORY", "COMMITTED", "ACCELERATOR", "QEMU", "UP"];

    fn label(&self) -> &str {
        &self.meta.name
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        let status = self.status.as_ref();
        let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "?".to_owned());
        vec![
            self.meta.name.clone(),
            self.committed.vms.to_string(),
            or_unknown(status.map(|s| s.cpus.to_string())),
            self.committed.vcpus.to_string(),
            or_unknown(status.map(|s| size(s.memory_bytes))),
            size(self.committed.memory_bytes),
            or_unknown(status.map(|s| s.accelerator.clone())),
            or_unknown(status.map(|s| s.qemu_version.clone().unwrap_or_else(|| "unusable".into()))),
            or_unknown(status.map(|s| age(now, &s.started_at))),
        ]
    }

    fn sheet(&self, now: Timestamp) -> Sheet {
        let mut sheet = meta_sheet(&self.meta, now);
        let committed = &self.committed;
        sheet.pair(
            "Committed",
            format!(
                "{} vCPUs and {} to {} VMs",
                committed.vcpus,
                size(committed.memory_bytes),
                committed.vms
            ),
        );
        let Some(status) = &self.status else {
            sheet.pair("Status", "its daemon has not reported yet");
            return sheet;
        };
        sheet
            .pair("CPUs", format!("{} ({})", status.cpus, status.cpu_model))
            .pair("Memory", size(status.memory_bytes))
            .some("Free memory", status.usage.map(|u| size(u.memory_available_bytes)))
            .pair("Accelerator", format!("{} ({})", status.accelerator, status.kvm_reason))
            .some("QEMU", status.qemu_version.as_deref())
            .some("QEMU problem", status.qemu_problem.as_deref())
            .pair("Kernel", &status.kernel)
            .pair("Control groups", &status.cgroups)
            .pair(
                "Daemon",
                format!("{}, up for {}", status.daemon_version, age(now, &status.started_at)),
            )
            .some("Daemon memory", status.usage.map(|u| size(u.daemon_resident_bytes)))
            .some(
                "I/O daemon memory",
                status.usage.and_then(|u| u.blockd_resident_bytes).map(size),
            );
        sheet
    }
}

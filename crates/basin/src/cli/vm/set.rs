//! `basin vm set`.

use basin_api::vm::{Vm, VmPatch};
use clap::Args;

use super::boot::{BootArgs, PolicyArgs};
use crate::cli::error::CliError;
use crate::cli::session::Session;
use crate::cli::text::parse_size;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  basin vm set web --cpus 4 --memory 8GiB
  basin vm set web --no-iso
  basin vm set web --on-crash leave             also while it runs")]
pub struct SetArgs {
    vm: String,
    /// Number of virtual CPUs
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// Memory
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// CPU model of QEMU; `auto` is the best for the server
    #[arg(long, value_name = "MODEL")]
    cpu_model: Option<String>,
    /// The ISO images in its CD-ROM drives, instead of those before (repeatable)
    #[arg(long, value_name = "IMAGE")]
    iso: Vec<String>,
    /// No CD-ROM drive
    #[arg(long, conflicts_with = "iso")]
    no_iso: bool,
    #[command(flatten)]
    boot: BootArgs,
    #[command(flatten)]
    policy: PolicyArgs,
}

impl SetArgs {
    pub async fn run(self, session: &Session) -> Result<(), CliError> {
        let client = &session.client;
        let mut patch = VmPatch {
            vcpus: self.cpus,
            memory_bytes: self.memory,
            cpu_model: self.cpu_model,
            boot: self.boot.boot(),
            cdroms: (self.no_iso || !self.iso.is_empty()).then_some(self.iso),
            ..VmPatch::default()
        };
        if patch == VmPatch::default() && self.policy.is_empty() {
            return Err(CliError::usage("nothing to change is given", "see: basin vm set --help"));
        }
        let vm = if self.policy.is_empty() {
            client.patch::<Vm>(&self.vm, &patch).await?
        } else {
            // The API takes a policy whole; the half that no flag names must not be lost.
            let before: Vm = client.get(&self.vm).await?;
            patch.policy = Some(self.policy.over(before.policy));
            client.patch_if::<Vm>(&before.meta.id, &patch, before.meta.revision).await?
        };
        session.said(&vm, "changed")
    }
}

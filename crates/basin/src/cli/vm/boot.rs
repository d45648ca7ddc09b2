//! Pure. How a VM boots and what happens when it fails, as flags.

use basin_api::vm::{Boot, FailurePolicy, OnFailure};
use clap::{Args, ValueEnum};

/// Firmware or a kernel; the firmware is SeaBIOS when nothing is said.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Boot")]
pub struct BootArgs {
    /// Boot with UEFI
    #[arg(long, conflicts_with_all = ["bios", "kernel"])]
    uefi: bool,
    /// Boot with a BIOS
    #[arg(long, conflicts_with = "kernel")]
    bios: bool,
    /// Boot this kernel (an image of kind kernel) without any firmware
    #[arg(long, value_name = "IMAGE")]
    kernel: Option<String>,
    /// The kernel's initial RAM disk (an image of kind initrd)
    #[arg(long, value_name = "IMAGE", requires = "kernel")]
    initrd: Option<String>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", requires = "kernel")]
    cmdline: Option<String>,
}

impl BootArgs {
    /// None when no flag says anything.
    pub fn boot(self) -> Option<Boot> {
        match self.kernel {
            Some(kernel) => Some(Boot::Kernel {
                kernel,
                initrd: self.initrd,
                command_line: self.cmdline.unwrap_or_default(),
            }),
            None if self.uefi => Some(Boot::Uefi),
            None if self.bios => Some(Boot::Bios),
            None => None,
        }
    }
}

#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Failures")]
pub struct PolicyArgs {
    /// What to do when the guest's kernel panics or its watchdog fires
    #[arg(long, value_enum, value_name = "restart|stop|leave", hide_possible_values = true)]
    on_crash: Option<OnFailureArg>,
    /// What to do when the QEMU process dies
    #[arg(long, value_enum, value_name = "restart|stop|leave", hide_possible_values = true)]
    on_death: Option<OnFailureArg>,
}

impl PolicyArgs {
    pub fn is_empty(&self) -> bool {
        self.on_crash.is_none() && self.on_death.is_none()
    }

    /// What the flags say, and what was before where they say nothing.
    pub fn over(&self, before: FailurePolicy) -> FailurePolicy {
        FailurePolicy {
            guest_crash: self.on_crash.map_or(before.guest_crash, OnFailure::from),
            machine_death: self.on_death.map_or(before.machine_death, OnFailure::from),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnFailureArg {
    Restart,
    Stop,
    Leave,
}

impl From<OnFailureArg> for OnFailure {
    fn from(arg: OnFailureArg) -> OnFailure {
        match arg {
            OnFailureArg::Restart => OnFailure::Restart,
            OnFailureArg::Stop => OnFailure::Stop,
            OnFailureArg::Leave => OnFailure::Leave,
        }
    }
}

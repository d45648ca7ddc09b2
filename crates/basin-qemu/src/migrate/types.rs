//! Pure. What is said about a migration.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::NonZeroU8;
use std::time::Duration;

use basin_model::{Bytes, BytesPerSecond};
use serde::{Deserialize, Serialize};

use super::MigrationKey;
use crate::hardware::Hardware;

/// What both sides must agree on before they begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Channel {
    /// Makes [`Migrate::start_postcopy`](super::Migrate::start_postcopy) possible. It costs
    /// the certainty that a failed source means a target that never ran: see the module.
    pub postcopy: bool,
    /// Memory goes over so many connections beside the first, each with a thread of its own.
    pub streams: Option<NonZeroU8>,
    /// What goes over those is compressed. For links slower than a processor.
    #[serde(default)]
    pub compress: bool,
}

/// How a target is launched.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// The source's.
    pub hardware: Hardware,
    pub key: MigrationKey,
    pub channel: Channel,
}

/// How a source begins.
#[derive(Debug, Clone)]
pub struct Outgoing {
    pub to: SocketAddr,
    pub key: MigrationKey,
    pub channel: Channel,
    pub limits: Limits,
    /// Stop at [`MigrationPhase::PreSwitchover`] and wait for
    /// [`Migrate::continue_switchover`](super::Migrate::continue_switchover). Without it
    /// nobody knows for sure, while it happens, whether the target may run yet.
    pub hold: bool,
    /// The guest's vCPUs may be slowed down.
    pub may_throttle: bool,
}

/// What may change while a migration runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// `None`: as fast as the link.
    pub bandwidth: Option<BytesPerSecond>,
    /// The switch comes once what is left would take no longer than this.
    pub downtime: Duration,
    /// Where the guest may be slowed down.
    pub throttle: Throttle,
}

/// How hard a guest is slowed down that writes faster than the link, in percent of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Throttle {
    pub initial: u8,
    pub step: u8,
    pub most: u8,
}

impl Throttle {
    /// The least that QEMU can: it slows a guest down by itself as soon as it may, and
    /// whether that is wanted shows later.
    pub const HARDLY: Throttle = Throttle { initial: 1, step: 1, most: 1 };
}

impl Default for Throttle {
    /// QEMU's own.
    fn default() -> Throttle {
        Throttle { initial: 20, step: 10, most: 99 }
    }
}

/// How far a migration is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MigrationPhase {
    /// There was none since the launch.
    None,
    /// A target waits, or both sides prepare.
    Setup,
    /// Memory is copied; the guest runs at the source.
    Active,
    /// The guest is stopped at the source, which waits to be told to send the rest.
    PreSwitchover,
    /// The rest is sent. The target may run.
    Switching,
    /// The guest is the target's; what it misses it fetches.
    Postcopy,
    /// The same, with a broken connection.
    PostcopyPaused,
    Completed,
    Cancelling,
    Cancelled,
    Failed {
        why: String,
    },
}

impl MigrationPhase {
    /// Nothing more will happen by itself.
    pub fn is_over(&self) -> bool {
        matches!(self, Self::None | Self::Completed | Self::Cancelled | Self::Failed { .. })
    }

    /// The target may run the guest, as far as the source knows.
    pub fn is_committed(&self) -> bool {
        matches!(self, Self::Switching | Self::Postcopy | Self::PostcopyPaused | Self::Completed)
    }
}

/// The state of a migration at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationStatus {
    pub phase: MigrationPhase,
    /// Once memory is copied.
    pub ram: Option<Ram>,
    pub setup_time: Option<Duration>,
    pub total_time: Option<Duration>,
    /// As the source sees it. What the guest's peers see is longer.
    pub downtime: Option<Duration>,
    pub expected_downtime: Option<Duration>,
    /// Of the vCPUs' time, in percent; 0 where they are not slowed down.
    pub throttle: u8,
    /// Where a target listens.
    pub address: Option<SocketAddr>,
}

impl MigrationStatus {
    /// Nothing but a phase.
    pub const fn of(phase: MigrationPhase) -> MigrationStatus {
        MigrationStatus {
            phase,
            ram: None,
            setup_time: None,
            total_time: None,
            downtime: None,
            expected_downtime: None,
            throttle: 0,
            address: None,
        }
    }
}

/// The guest's memory on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ram {
    pub total: Bytes,
    pub remaining: Bytes,
    /// On the wire.
    pub transferred: Bytes,
    /// How fast the guest writes, averaged over a second or more.
    pub dirty_rate: BytesPerSecond,
    pub bandwidth: BytesPerSecond,
    /// How often all of the memory was looked through for what is dirty.
    pub passes: u64,
    /// Pages that the target asked for, in post-copy.
    pub page_requests: u64,
}

/// What an engine's QEMU can do, for the checks before a migration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MigrationSupport {
    /// The version of QEMU, such as `7.2.22`.
    pub version: String,
    /// The versioned machine types that it can be a target for.
    pub machines: BTreeSet<String>,
    /// QEMU's migration capabilities.
    pub capabilities: BTreeSet<String>,
    /// Streams can be compressed.
    #[serde(default)]
    pub compression: bool,
    /// Why this server cannot be the target of a post-copy, if so.
    pub no_postcopy: Option<String>,
    /// What serves its disks can be the target of a post-copy as well: QEMU refuses one
    /// whose devices' back ends cannot wait for memory. Not said by who does not know of it.
    #[serde(default)]
    pub disks_by_postcopy: bool,
    /// `kvm` or `tcg`: a guest stays with what it has.
    pub accelerator: String,
    /// The size of the UEFI firmware and of its variables, where it is installed.
    pub flash: Option<crate::hardware::Flash>,
}

impl MigrationSupport {
    /// Why a guest on this hardware cannot come here; empty when it can.
    pub fn refuse(&self, hardware: &Hardware) -> Vec<String> {
        let mut why = Vec::new();
        if hardware.accelerator != self.accelerator {
            why.push(format!(
                "the guest runs under {}, and that server has {}",
                hardware.accelerator, self.accelerator
            ));
        }
        if !self.machines.contains(&hardware.machine) {
            why.push(format!(
                "QEMU {} of that server has no machine type {}: install a newer QEMU there, or \
                 power the VM off and on with an older machine version",
                self.version, hardware.machine
            ));
        }
        if hardware.layout > Hardware::LAYOUT {
            why.push("the guest was started by a newer Basin".to_owned());
        }
        match (hardware.flash, self.flash) {
            (Some(_), None) => why.push("UEFI firmware is not installed there".to_owned()),
            (Some(here), Some(there)) if here != there => why.push(format!(
                "its UEFI firmware is {} with {} of variables, and that server's is {} with {}",
                here.code, here.vars, there.code, there.vars
            )),
            _ => {}
        }
        why
    }

    /// The part of what is wanted that a source here and this target can do for a guest with
    /// or without disks, and why the rest is not. Without the rest a guest moves as well, if
    /// not as fast.
    pub fn agree(
        &self,
        target: &MigrationSupport,
        wanted: Channel,
        disks: bool,
    ) -> (Channel, Vec<String>) {
        let (mut channel, mut why) = (wanted, Vec::new());
        if wanted.postcopy
            && let Some(reason) = &target.no_postcopy
        {
            channel.postcopy = false;
            why.push(format!("no post-copy: {reason}"));
        }
        let both = |capability: &str| {
            [self, target].iter().all(|side| side.capabilities.contains(capability))
        };
        if wanted.postcopy && channel.postcopy && !both("postcopy-ram") {
            channel.postcopy = false;
            why.push("no post-copy: QEMU of one of the servers has none".to_owned());
        }
        if channel.postcopy && disks && !target.disks_by_postcopy {
            channel.postcopy = false;
            why.push(
                "no post-copy: that server cannot wait for the memory of a VM with disks"
                    .to_owned(),
            );
        }
        if channel.streams.is_some() && channel.postcopy {
            // QEMU refuses the two together.
            channel.streams = None;
            why.push("one connection: post-copy may be needed".to_owned());
        } else if channel.streams.is_some() && !both("multifd") {
            channel.streams = None;
            why.push("one connection: QEMU of one of the servers has no more".to_owned());
        }
        if wanted.compress && channel.streams.is_none() {
            channel.compress = false;
            why.push("no compression: it needs several connections".to_owned());
        } else if channel.compress && !(self.compression && target.compression) {
            channel.compress = false;
            why.push("no compression: QEMU of one of the servers has no zstd".to_owned());
        }
        (channel, why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_servers_agree_on_what_both_can() {
        let capabilities = ["multifd", "postcopy-ram"].map(str::to_owned).into();
        let able = MigrationSupport { capabilities, compression: true, ..Default::default() };
        let streams = NonZeroU8::new(4);
        let fast = Channel { streams, compress: true, postcopy: false };
        assert_eq!(able.agree(&able, fast, true), (fast, vec![]));
        let all = Channel { postcopy: true, ..fast };
        let (channel, why) = able.agree(&able, all, false);
        assert_eq!(channel, Channel { postcopy: true, ..Channel::default() });
        assert_eq!(why.len(), 2, "{why:?}");
        let (channel, why) = able.agree(&able, all, true);
        assert_eq!(channel, Channel { streams, compress: true, postcopy: false });
        assert!(why.len() == 1 && why[0].contains("with disks"), "{why:?}");
        let served = MigrationSupport { disks_by_postcopy: true, ..able.clone() };
        assert!(able.agree(&served, all, true).0.postcopy, "the target's are what counts");
        assert!(!served.agree(&able, all, true).0.postcopy);
        let no_postcopy = Some("not here".to_owned());
        let other = MigrationSupport { no_postcopy, compression: false, ..able.clone() };
        let (channel, why) = able.agree(&other, all, true);
        assert_eq!(channel, Channel { streams, ..Channel::default() });
        assert!(why[0].contains("not here") && why[1].contains("zstd"), "{why:?}");
        let (channel, why) = able.agree(&MigrationSupport::default(), all, true);
        assert_eq!((channel, why.len()), (Channel::default(), 3), "{why:?}");
    }
}

//! Live migration by QEMU.

pub mod creds;
mod support;
pub mod wire;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;
use qapi::qmp;

use super::files::doing;
use super::machine::QemuMachine;
use crate::engine::{EngineError, Machine, MachineState};
use crate::hardware::Hardware;
use crate::migrate::{
    Channel, Incoming, Limits, Migrate, MigrationKey, MigrationPhase, MigrationStatus, Outgoing,
};
pub use support::{permit_postcopy, support};
use wire::{Capability, SetCapabilities, SetParameters};

/// The key's name in QEMU.
const KEY: &str = "migration";
/// TLS 1.3 with AES-128-GCM. A pre-shared key leaves that and ChaCha20, which GnuTLS prefers
/// and which is many times as slow on a CPU with AES instructions (decision 0121).
const CIPHERS: &str = "NORMAL:-VERS-ALL:+VERS-TLS1.3:-CHACHA20-POLY1305";
/// Quick enough for a link of a gigabit, and a third of the bytes.
const COMPRESSION: &str = "zstd";
/// In milliseconds: six times within a second.
const ANNOUNCE: wire::Announce = wire::Announce { initial: 20, step: 60, rounds: 6, max: 500 };
/// QEMU takes a number; this one is no limit.
const UNLIMITED: u64 = 1 << 48;

/// Prepares a target that was just launched.
pub async fn expect_guest(machine: &QemuMachine, incoming: &Incoming) -> Result<(), EngineError> {
    let what = "prepare for its guest";
    machine.give_key(what, &incoming.key, "server").await?;
    machine.ask(what, capabilities(incoming.channel, false, false)).await?;
    // Peers learn the new place of the guest's addresses from these. The first goes out
    // as the guest starts, whatever is set here.
    let parameters = SetParameters {
        announce_initial: Some(ANNOUNCE.initial),
        announce_step: Some(ANNOUNCE.step),
        announce_rounds: Some(ANNOUNCE.rounds),
        announce_max: Some(ANNOUNCE.max),
        ..parameters(incoming.channel)
    };
    machine.ask(what, parameters).await.map(drop)
}

/// After a daemon's restart: events go on where they were, and no key stays.
pub async fn look_again(machine: &QemuMachine, was_target: bool) {
    let coming = was_target && machine.state().await.ok() == Some(MachineState::Incoming);
    let phase = machine.migration().await.map(|status| status.phase);
    let over = phase.as_ref().is_ok_and(MigrationPhase::is_over);
    machine.shared.hub.translator().leaving = !coming && !over;
    if !coming && over {
        creds::remove(&machine.shared.paths.migration());
    }
}

/// A page each 100 ms, and what the target asks for. A target to which all has come tells
/// its devices' back ends so from another thread than the one that starts them, over the
/// same connections: answers would reach the wrong one (decision 0192).
const FEW_PAGES: u64 = 10;

fn capabilities(channel: Channel, hold: bool, may_throttle: bool) -> SetCapabilities {
    let set = |capability, state| Capability { capability, state };
    SetCapabilities {
        capabilities: vec![
            set("events", true),
            set("validate-uuid", true),
            set("auto-converge", may_throttle),
            set("pause-before-switchover", hold),
            set("postcopy-ram", channel.postcopy),
            // With it a source would wait for the target's last word, and run its guest
            // again by itself when that is lost. Post-copy has it anyway.
            set("return-path", false),
            set("multifd", channel.streams.is_some()),
        ],
    }
}

fn parameters(channel: Channel) -> SetParameters {
    SetParameters {
        tls_creds: Some(KEY),
        multifd_channels: channel.streams.map(std::num::NonZero::get),
        multifd_compression: channel
            .streams
            .map(|_| if channel.compress { COMPRESSION } else { "none" }),
        ..SetParameters::default()
    }
}

fn limits(limits: &Limits) -> SetParameters {
    let bandwidth = limits.bandwidth.map_or(UNLIMITED, |limit| limit.get().max(1));
    let percent = |value: u8| Some(value.clamp(1, 99));
    SetParameters {
        max_bandwidth: Some(bandwidth),
        // 0 is no limit there.
        max_postcopy_bandwidth: Some(limits.bandwidth.map_or(0, |limit| limit.get().max(1))),
        downtime_limit: Some(
            u64::try_from(limits.downtime.as_millis()).unwrap_or(1).clamp(1, 2_000_000),
        ),
        cpu_throttle_initial: percent(limits.throttle.initial.min(limits.throttle.most)),
        cpu_throttle_increment: percent(limits.throttle.step),
        max_cpu_throttle: percent(limits.throttle.most),
        ..SetParameters::default()
    }
}

impl QemuMachine {
    async fn give_key(
        &self,
        what: &'static str,
        key: &MigrationKey,
        endpoint: &'static str,
    ) -> Result<(), EngineError> {
        let dir = self.shared.paths.migration();
        let path = dir.display().to_string();
        let (key, uid) = (key.clone(), self.shared.uid);
        let writing = tokio::task::spawn_blocking(move || creds::write(&dir, &key, uid)).await;
        doing(writing.unwrap_or_else(|error| Err(std::io::Error::other(error))), || {
            "write the migration's key".to_owned()
        })?;
        // Of an earlier migration, if there was one.
        let _ = self.ask(what, wire::RemoveKey { id: KEY }).await;
        let add = wire::AddKey {
            qom_type: "tls-creds-psk",
            id: KEY,
            dir: path,
            endpoint,
            priority: CIPHERS,
            username: (endpoint == "client").then_some(creds::USER),
        };
        self.ask(what, add).await.map(drop)
    }

    async fn begin(&self, outgoing: &Outgoing) -> Result<(), EngineError> {
        let what = "migrate";
        let given = self.give_key(what, &outgoing.key, "client").await;
        creds::remove(&self.shared.paths.migration());
        given?;
        let Outgoing { channel, hold, may_throttle, .. } = *outgoing;
        self.ask(what, capabilities(channel, hold, may_throttle)).await?;
        self.ask(what, parameters(channel)).await?;
        self.ask(what, limits(&outgoing.limits)).await?;
        self.shared.hub.translator().leaving = true;
        let command = wire::Migrate { uri: wire::uri(outgoing.to), resume: None };
        let begun = self.ask(what, command).await;
        if begun.is_err() {
            self.shared.hub.translator().leaving = false;
        }
        begun.map(drop)
    }

    /// Waits until nothing more happens by itself.
    async fn over(&self, what: &'static str) -> Result<MigrationPhase, EngineError> {
        let waiting = async {
            loop {
                let phase = self.migration().await?.phase;
                if phase.is_over() {
                    return Ok(phase);
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(self.shared.limit, waiting).await.unwrap_or_else(|_| {
            let why = "QEMU is still at it".to_owned();
            Err(EngineError::Refused { what, why })
        })
    }

    async fn listen_with(
        &self,
        address: IpAddr,
        command: impl AsyncFnOnce(String) -> Result<(), EngineError>,
    ) -> Result<SocketAddr, EngineError> {
        command(wire::uri(SocketAddr::new(address, 0))).await?;
        let asked = self.migration().await?.address;
        asked.ok_or_else(|| EngineError::Refused {
            what: "listen for its guest",
            why: "QEMU does not tell its port".to_owned(),
        })
    }
}

#[async_trait]
impl Migrate for QemuMachine {
    fn hardware(&self) -> Hardware {
        self.shared.hardware.clone()
    }

    async fn migration(&self) -> Result<MigrationStatus, EngineError> {
        let info = self.ask("tell its migration", wire::QueryMigrate {}).await?;
        Ok(info.status())
    }

    async fn listen(&self, address: IpAddr) -> Result<SocketAddr, EngineError> {
        if let Some(address) = self.migration().await?.address {
            return Ok(address);
        }
        self.listen_with(address, async |uri| {
            self.ask("listen for its guest", wire::MigrateIncoming { uri }).await.map(drop)
        })
        .await
    }

    async fn announce(&self) -> Result<(), EngineError> {
        self.ask("announce its guest", ANNOUNCE).await.map(drop)
    }

    async fn listen_to_recover(&self, address: IpAddr) -> Result<SocketAddr, EngineError> {
        self.listen_with(address, async |uri| {
            self.ask("listen for its guest again", wire::MigrateRecover { uri }).await.map(drop)
        })
        .await
    }

    async fn migrate(&self, outgoing: &Outgoing) -> Result<(), EngineError> {
        let _one = self.shared.switch.lock().await;
        let phase = self.migration().await?.phase;
        if !phase.is_over() {
            let why = "a migration is under way".to_owned();
            return Err(EngineError::Refused { what: "migrate", why });
        }
        self.begin(outgoing).await
    }

    async fn set_limits(&self, new: &Limits) -> Result<(), EngineError> {
        self.ask("change its migration", limits(new)).await.map(drop)
    }

    async fn continue_switchover(&self) -> Result<(), EngineError> {
        let _one = self.shared.switch.lock().await;
        let command = wire::MigrateContinue { state: "pre-switchover" };
        self.ask("send the rest of its guest", command).await.map(drop)
    }

    async fn cancel_migration(&self) -> Result<(), EngineError> {
        let what = "cancel its migration";
        let _one = self.shared.switch.lock().await;
        let phase = self.migration().await?.phase;
        if phase.is_over() {
            return Ok(());
        }
        if phase.is_committed() {
            let why = "the guest may run at the target already".to_owned();
            return Err(EngineError::Refused { what, why });
        }
        self.ask(what, wire::MigrateCancel {}).await?;
        self.over(what).await.map(drop)
    }

    async fn start_postcopy(&self) -> Result<(), EngineError> {
        let what = "go over to post-copy";
        let _one = self.shared.switch.lock().await;
        let slow = Some(FEW_PAGES);
        let slow = SetParameters { max_postcopy_bandwidth: slow, ..SetParameters::default() };
        self.ask(what, slow).await?;
        self.ask(what, wire::StartPostcopy {}).await.map(drop)
    }

    async fn pause_postcopy(&self) -> Result<(), EngineError> {
        self.ask("pause its post-copy", wire::MigratePause {}).await.map(drop)
    }

    async fn recover_postcopy(&self, to: SocketAddr) -> Result<(), EngineError> {
        let command = wire::Migrate { uri: wire::uri(to), resume: Some(true) };
        self.ask("recover its post-copy", command).await.map(drop)
    }

    async fn reclaim(&self) -> Result<(), EngineError> {
        let what = "take its guest back";
        let refused = |why: &str| EngineError::Refused { what, why: why.to_owned() };
        let _one = self.shared.switch.lock().await;
        let info = self.ask(what, wire::QueryMigrate {}).await?;
        match info.status().phase {
            MigrationPhase::Postcopy | MigrationPhase::PostcopyPaused => {
                return Err(refused("a part of it is at the target only"));
            }
            MigrationPhase::Completed if info.was_postcopy() => {
                return Err(refused("it ran at the target, in post-copy"));
            }
            phase if !phase.is_over() => {
                self.ask(what, wire::MigrateCancel {}).await?;
                self.over(what).await?;
            }
            _ => {}
        }
        match self.state().await? {
            MachineState::Migrated | MachineState::Paused => {
                self.ask(what, qmp::cont {}).await.map(drop)
            }
            MachineState::Running => Ok(()),
            other => Err(refused(&format!("it is {other:?}"))),
        }
    }
}

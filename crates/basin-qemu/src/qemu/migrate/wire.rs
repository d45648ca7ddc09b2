//! Pure. QMP's migration commands, as every QEMU since 7.2 understands them.
//!
//! Not those of the crate `qapi`: its newer schema writes a string-or-null as an object and
//! asks for answers that older QEMUs do not give.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use basin_model::{Bytes, BytesPerSecond};
use qapi::qmp::QmpCommand;
use serde::{Deserialize, Serialize};

use crate::migrate::{MigrationPhase, MigrationStatus, Ram};

/// A command of these words; `$ok` is its answer.
macro_rules! command {
    ($type:ty, $name:literal, $oob:literal, $ok:ty) => {
        impl qapi::Command for $type {
            type Ok = $ok;
            const NAME: &'static str = $name;
            const ALLOW_OOB: bool = $oob;
        }
        impl QmpCommand for $type {}
    };
}

#[derive(Debug, Serialize)]
pub struct QueryMigrate {}
command!(QueryMigrate, "query-migrate", false, Info);

#[derive(Debug, Serialize)]
pub struct Migrate {
    pub uri: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume: Option<bool>,
}
command!(Migrate, "migrate", false, qapi::Empty);

#[derive(Debug, Serialize)]
pub struct MigrateIncoming {
    pub uri: String,
}
command!(MigrateIncoming, "migrate-incoming", false, qapi::Empty);

#[derive(Debug, Serialize)]
pub struct MigrateRecover {
    pub uri: String,
}
command!(MigrateRecover, "migrate-recover", true, qapi::Empty);

#[derive(Debug, Serialize)]
pub struct MigratePause {}
command!(MigratePause, "migrate-pause", true, qapi::Empty);

#[derive(Debug, Serialize)]
pub struct MigrateCancel {}
command!(MigrateCancel, "migrate_cancel", false, qapi::Empty);

#[derive(Debug, Serialize)]
pub struct MigrateContinue {
    pub state: &'static str,
}
command!(MigrateContinue, "migrate-continue", false, qapi::Empty);

#[derive(Debug, Serialize)]
pub struct StartPostcopy {}
command!(StartPostcopy, "migrate-start-postcopy", false, qapi::Empty);

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Announce {
    pub initial: u64,
    pub max: u64,
    pub rounds: u64,
    pub step: u64,
}
command!(Announce, "announce-self", false, qapi::Empty);

#[derive(Debug, Serialize)]
pub struct SetCapabilities {
    pub capabilities: Vec<Capability>,
}
command!(SetCapabilities, "migrate-set-capabilities", false, qapi::Empty);

#[derive(Debug, Serialize)]
pub struct Capability {
    pub capability: &'static str,
    pub state: bool,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SetParameters {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_creds: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bandwidth: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_postcopy_bandwidth: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downtime_limit: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multifd_channels: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multifd_compression: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_initial: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_increment: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_cpu_throttle: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub announce_initial: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub announce_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub announce_rounds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub announce_step: Option<u64>,
}
command!(SetParameters, "migrate-set-parameters", false, qapi::Empty);

/// `object-add` of a key.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct AddKey {
    pub qom_type: &'static str,
    pub id: &'static str,
    pub dir: String,
    pub endpoint: &'static str,
    /// In GnuTLS's words.
    pub priority: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<&'static str>,
}
command!(AddKey, "object-add", false, qapi::Empty);

#[derive(Debug, Serialize)]
pub struct RemoveKey {
    pub id: &'static str,
}
command!(RemoveKey, "object-del", false, qapi::Empty);

/// What `query-migrate` tells, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Info {
    status: Option<String>,
    ram: Option<InfoRam>,
    total_time: Option<u64>,
    setup_time: Option<u64>,
    downtime: Option<u64>,
    expected_downtime: Option<u64>,
    cpu_throttle_percentage: Option<u8>,
    error_desc: Option<String>,
    socket_address: Option<Vec<InfoAddress>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct InfoRam {
    total: u64,
    remaining: u64,
    transferred: u64,
    dirty_pages_rate: u64,
    page_size: u64,
    mbps: f64,
    dirty_sync_count: u64,
    postcopy_requests: u64,
    postcopy_bytes: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct InfoAddress {
    host: String,
    port: String,
}

impl Info {
    /// Whether a part of the memory went over after the guest.
    pub fn was_postcopy(&self) -> bool {
        self.ram.as_ref().is_some_and(|ram| ram.postcopy_requests > 0 || ram.postcopy_bytes > 0)
    }

    pub fn status(&self) -> MigrationStatus {
        let millis = |ms: Option<u64>| ms.map(Duration::from_millis);
        MigrationStatus {
            phase: self.phase(),
            ram: self.ram.as_ref().map(|ram| Ram {
                total: Bytes(ram.total),
                remaining: Bytes(ram.remaining),
                transferred: Bytes(ram.transferred),
                dirty_rate: BytesPerSecond(ram.dirty_pages_rate.saturating_mul(ram.page_size)),
                // Megabits; a negative or absurd figure becomes the nearest that is none.
                bandwidth: BytesPerSecond((ram.mbps * 125_000.0) as u64),
                passes: ram.dirty_sync_count,
                page_requests: ram.postcopy_requests,
            }),
            setup_time: millis(self.setup_time),
            total_time: millis(self.total_time),
            downtime: millis(self.downtime),
            expected_downtime: millis(self.expected_downtime),
            throttle: self.cpu_throttle_percentage.unwrap_or(0),
            address: self.socket_address.iter().flatten().find_map(InfoAddress::parse),
        }
    }

    fn phase(&self) -> MigrationPhase {
        self.status.as_deref().map_or(MigrationPhase::None, |status| {
            phase(status, || {
                let unsaid = || "QEMU does not say why; its log may".to_owned();
                self.error_desc.clone().unwrap_or_else(unsaid)
            })
        })
    }
}

impl InfoAddress {
    fn parse(&self) -> Option<SocketAddr> {
        let ip: IpAddr = self.host.parse().ok()?;
        Some(SocketAddr::new(ip, self.port.parse().ok()?))
    }
}

/// What QEMU's word for a migration's status means.
pub fn phase(status: &str, why: impl FnOnce() -> String) -> MigrationPhase {
    match status {
        "none" => MigrationPhase::None,
        "setup" | "wait-unplug" => MigrationPhase::Setup,
        "active" => MigrationPhase::Active,
        "pre-switchover" => MigrationPhase::PreSwitchover,
        "device" | "colo" => MigrationPhase::Switching,
        "postcopy-device" | "postcopy-active" => MigrationPhase::Postcopy,
        "postcopy-paused" | "postcopy-recover" | "postcopy-recover-setup" => {
            MigrationPhase::PostcopyPaused
        }
        "completed" => MigrationPhase::Completed,
        "cancelling" => MigrationPhase::Cancelling,
        "cancelled" => MigrationPhase::Cancelled,
        "failed" => MigrationPhase::Failed { why: why() },
        other => MigrationPhase::Failed { why: format!("QEMU calls its status '{other}'") },
    }
}

/// The address as QEMU takes it.
pub fn uri(address: SocketAddr) -> String {
    format!("tcp:{address}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_7_2_is_read() {
        let text = r#"{"status":"active","total-time":120,"setup-time":4,"expected-downtime":300,
            "cpu-throttle-percentage":20,"ram":{"total":100,"remaining":40,"transferred":60,
            "dirty-pages-rate":3,"page-size":4096,"mbps":8.0,"dirty-sync-count":2,
            "postcopy-requests":0,"skipped":0,"normal":1,"duplicate":9}}"#;
        let status = serde_json::from_str::<Info>(text).unwrap().status();
        assert_eq!(status.phase, MigrationPhase::Active);
        let ram = status.ram.unwrap();
        assert_eq!(ram.dirty_rate, BytesPerSecond(3 * 4096));
        assert_eq!(ram.bandwidth, BytesPerSecond(1_000_000));
        assert_eq!((status.throttle, ram.passes), (20, 2));
        let text = r#"{"socket-address":[{"type":"inet","host":"::1","port":"4321"}]}"#;
        let status = serde_json::from_str::<Info>(text).unwrap().status();
        assert_eq!(status.address, Some("[::1]:4321".parse().unwrap()));
        assert_eq!(status.phase, MigrationPhase::None);
    }

    #[test]
    fn a_failure_says_why() {
        let text = r#"{"status":"failed","error-desc":"no route"}"#;
        let status = serde_json::from_str::<Info>(text).unwrap().status();
        assert_eq!(status.phase, MigrationPhase::Failed { why: "no route".to_owned() });
    }

    #[test]
    fn commands_are_what_qemu_expects() {
        let parameters = SetParameters {
            tls_creds: Some("migration"),
            downtime_limit: Some(30),
            ..SetParameters::default()
        };
        let text = serde_json::to_string(&parameters).unwrap();
        assert_eq!(text, r#"{"tls-creds":"migration","downtime-limit":30}"#);
        assert_eq!(uri("[fd00::1]:0".parse().unwrap()), "tcp:[fd00::1]:0");
    }
}

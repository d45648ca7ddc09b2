//! `basin doctor`: what keeps this server from running VMs well, and what to do about it.
//!
//! Works without a daemon, and changes nothing.

mod facts;
mod judge;

use std::net::SocketAddr;
use std::path::PathBuf;

use basin_model::host::{KvmVerdict, QemuInfo};

/// What to look at.
#[derive(Debug, Clone)]
pub struct DoctorConfig {
    pub state_dir: PathBuf,
    /// Where the daemon is to listen.
    pub listen: Vec<SocketAddr>,
    /// What the engine found.
    pub qemu: QemuInfo,
    pub kvm: KvmVerdict,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    pub severity: Severity,
    /// The thing, such as `QEMU`.
    pub what: String,
    /// How it is.
    pub why: String,
    /// What to do; empty when nothing is to be done.
    pub advice: String,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Ok,
    /// VMs run, but less well or less safely than they could.
    Warning,
    /// VMs, or some of them, do not run.
    Problem,
}

/// Looks at the server.
pub async fn examine(config: DoctorConfig) -> Vec<Finding> {
    let look = move || judge::judge(&facts::gather(&config));
    tokio::task::spawn_blocking(look).await.unwrap_or_else(|error| {
        let (what, why) = ("the examination itself".to_owned(), error.to_string());
        let advice = "report this as a defect of Basin".to_owned();
        vec![Finding { severity: Severity::Problem, what, why, advice }]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn this_very_server_is_looked_at_in_full() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let _daemon = crate::lockfile::claim(dir.path()).unwrap();
        let findings = examine(DoctorConfig {
            state_dir: dir.path().to_owned(),
            listen: vec![listener.local_addr().unwrap()],
            qemu: QemuInfo::Usable { path: "/usr/bin/qemu".into(), version: "7.2.0".into() },
            kvm: KvmVerdict { usable: true, reason: "works".into() },
        })
        .await;
        let find = |what: &str| {
            let found = findings.iter().find(|f| f.what.contains(what));
            found.unwrap_or_else(|| panic!("{what} is not in {findings:#?}"))
        };
        assert_eq!(find("user").severity, Severity::Ok);
        // The daemon that runs is this process, so its port is its own.
        let port = find(&listener.local_addr().unwrap().to_string());
        assert_eq!(port.severity, Severity::Ok);
        assert!(find("daemon").why.contains(&std::process::id().to_string()));
        assert_eq!(find("dnsmasq").severity, Severity::Ok);
        assert!(findings.iter().all(|f| (f.severity == Severity::Ok) == f.advice.is_empty()));
    }
}

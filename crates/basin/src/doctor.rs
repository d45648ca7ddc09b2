//! `basin doctor`: what this machine lacks for running virtual machines, and
//! what to do about it. Needs no daemon.

use std::path::PathBuf;
use std::process::ExitCode;

use basin_node::doctor::{DoctorConfig, Severity, examine};
use basin_qemu::{probe, qemu};

pub fn main() -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let state_dir = std::env::var_os("BASIN_STATE_DIR").map(PathBuf::from);
    let config = DoctorConfig {
        state_dir: state_dir.unwrap_or_else(|| PathBuf::from("/var/lib/basin")),
        listen: vec![([0, 0, 0, 0], 7443).into()],
        qemu: qemu::inspect(None),
        kvm: probe::kvm(),
    };
    let findings = runtime.block_on(examine(config));
    let mut worst = Severity::Ok;
    for finding in &findings {
        let mark = match finding.severity {
            Severity::Ok => "ok     ",
            Severity::Warning => "warning",
            Severity::Problem => "PROBLEM",
        };
        println!("{mark}  {}: {}", finding.what, finding.why);
        if !finding.advice.is_empty() {
            println!("         → {}", finding.advice);
        }
        worst = worst.max(finding.severity);
    }
    Ok(if worst == Severity::Problem { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

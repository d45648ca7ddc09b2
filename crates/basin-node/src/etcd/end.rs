//! Ends what a member left that is not this server's any more: its process may run
//! without a daemon.

use basin_model::task::Problem;

use super::config::MemberConfig;
use super::process;
use crate::problem::problem;

/// Ends the process that has the member's data, if there is one. What it holds stays.
pub async fn end(config: &MemberConfig) -> Result<(), Problem> {
    while let Some(running) = process::find(config) {
        let pid = running.pid;
        running.end().await.map_err(|e| {
            let detail = format!("etcd, process {pid}, does not end: {e}");
            problem("etcd-does-not-end", detail, "end it by hand (kill -9)")
        })?;
    }
    Ok(())
}

//! Takes away what a member left that is not this server's any more, or was never
//! finished: its process, which may run without a daemon, before its data.

use std::io;

use basin_model::task::Problem;

use super::config::MemberConfig;
use super::process;
use crate::problem::problem;

/// Ends the process that has the member's data, and deletes them. A process whose
/// files were deleted under it would go on serving what nobody can find again.
pub async fn clear(config: &MemberConfig) -> Result<(), Problem> {
    end(config).await?;
    match tokio::fs::remove_dir_all(config.data_dir()).await {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            let detail = format!("cannot delete {}: {e}", config.data_dir().display());
            Err(problem("etcd-remains", detail, "delete the directory by hand"))
        }
        _ => Ok(()),
    }
}

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

//! Children that this process had before it began anew. They are taken over like those
//! of an earlier daemon, as processes of somebody else's; but their parent is this one,
//! and without it they would stay as zombies.

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tracing::warn;

/// To be called before anything is started. Reaps those that were there, and no others.
pub fn reap_inherited() {
    let mut children = children_of(std::process::id());
    if children.is_empty() {
        return;
    }
    let mut ended = match signal(SignalKind::child()) {
        Ok(ended) => ended,
        Err(error) => return warn!(%error, "children of before cannot be reaped"),
    };
    tokio::spawn(async move {
        loop {
            children.retain(|&child| {
                let state = waitpid(child, Some(WaitPidFlag::WNOHANG));
                matches!(state, Ok(WaitStatus::StillAlive))
            });
            if children.is_empty() || ended.recv().await.is_none() {
                return;
            }
        }
    });
}

fn children_of(parent: u32) -> Vec<Pid> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| parent_of(*pid) == Some(parent)).map(Pid::from_raw).collect()
}

fn parent_of(pid: i32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything, also parentheses.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_found_by_their_parent() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        assert!(children_of(std::process::id()).contains(&pid));
        assert!(!children_of(1).contains(&pid));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!children_of(std::process::id()).contains(&pid));
    }
}

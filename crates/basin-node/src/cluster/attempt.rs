//! What was begun to make this server one of a cluster, and how it ended. A daemon
//! that dies meanwhile finds it here and finishes or undoes it.

use std::io;
use std::path::{Path, PathBuf};

use basin_model::task::Problem;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ClusterDir;
use crate::fault::point;
use crate::files;

const INTENT: &str = "intent.json";
/// The new cluster's CA, with its key.
pub(super) const AUTHORITY: &str = "authority.json";

/// What is to be done at the daemon's next start, in `cluster.next/intent.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "intent")]
pub enum Intent {
    /// This server's state moves into etcd.
    Found { attempt: Uuid },
    /// The cluster has taken this server in: it only has to act like it.
    Join { attempt: Uuid },
}

impl Intent {
    pub fn attempt(&self) -> Uuid {
        match self {
            Intent::Found { attempt } | Intent::Join { attempt } => *attempt,
        }
    }
}

/// How the last attempt failed, in `STATE/cluster-attempt.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    pub attempt: Uuid,
    pub problem: Problem,
}

/// Notes the intent; with it the directory counts.
pub fn intend(next: &ClusterDir, intent: &Intent) -> io::Result<()> {
    let text = serde_json::to_vec(intent).map_err(io::Error::other)?;
    files::write(&next.path().join(INTENT), &text, 0o600, None)
}

/// What is to be done. A directory without an intent was not finished: it goes.
pub fn intended(next: &ClusterDir) -> io::Result<Option<Intent>> {
    if !next.exists() {
        return Ok(None);
    }
    let read = std::fs::read(next.path().join(INTENT)).ok();
    match read.and_then(|text| serde_json::from_slice(&text).ok()) {
        Some(intent) => Ok(Some(intent)),
        None => discard(next).map(|()| None),
    }
}

pub fn discard(next: &ClusterDir) -> io::Result<()> {
    match std::fs::remove_dir_all(next.path()) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// The moment from which on this server is one of a cluster.
pub fn enter(state_dir: &Path) -> io::Result<()> {
    let (next, current) = (ClusterDir::next(state_dir), ClusterDir::current(state_dir));
    point("cluster/enter/before");
    std::fs::rename(next.path(), current.path())?;
    std::fs::File::open(state_dir)?.sync_all()?;
    point("cluster/enter/after");
    Ok(())
}

/// What was needed until then only. The CA's key is in the store now.
pub fn tidy(current: &ClusterDir) -> io::Result<()> {
    for name in [INTENT, AUTHORITY] {
        match std::fs::remove_file(current.path().join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

fn failed_path(state_dir: &Path) -> PathBuf {
    state_dir.join("cluster-attempt.json")
}

pub fn note_failed(state_dir: &Path, failed: &Failed) -> io::Result<()> {
    let text = serde_json::to_vec(failed).map_err(io::Error::other)?;
    files::write(&failed_path(state_dir), &text, 0o600, None)
}

/// How the last attempt failed, if it did.
pub fn last_failed(state_dir: &Path) -> Option<Failed> {
    serde_json::from_slice(&std::fs::read(failed_path(state_dir)).ok()?).ok()
}

/// The single server's state is put aside once it is in the cluster's store: were it
/// ever used again, it would bring back what was long changed.
pub fn retire_single_store(state_dir: &Path) -> io::Result<()> {
    let aside = state_dir.join("before-cluster");
    for name in ["store.sqlite-wal", "store.sqlite-shm", "store.sqlite"] {
        let path = state_dir.join(name);
        if path.exists() {
            std::fs::create_dir_all(&aside)?;
            std::fs::rename(&path, aside.join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_intent_counts() {
        let state = tempfile::tempdir().unwrap();
        let next = ClusterDir::next(state.path());
        assert_eq!(intended(&next).unwrap(), None);
        std::fs::create_dir_all(next.etcd()).unwrap();
        assert_eq!(intended(&next).unwrap(), None);
        assert!(!next.exists(), "what was not finished is gone");
        std::fs::create_dir_all(next.etcd()).unwrap();
        let intent = Intent::Join { attempt: Uuid::from_u128(1) };
        intend(&next, &intent).unwrap();
        assert_eq!(intended(&next).unwrap(), Some(intent));
        enter(state.path()).unwrap();
        let current = ClusterDir::current(state.path());
        assert!(current.etcd().exists() && !next.exists());
        // Cut off here, the next start does the rest.
        tidy(&current).unwrap();
        tidy(&current).unwrap();
        assert!(!current.path().join(INTENT).exists());
    }
}

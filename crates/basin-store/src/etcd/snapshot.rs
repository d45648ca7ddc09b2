//! A backup of everything that a member holds, as one file.
//!
//! It is etcd's own form, so etcd's own tools read it: the database, and the SHA-256
//! of it in the last 32 bytes.

use std::io;
use std::path::Path;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::fs::{self, File, OpenOptions};
use tokio::io::AsyncWriteExt;
use tonic::Streaming;

use super::admin::EtcdAdmin;
use super::errors::{chain, failure};
use super::link::plain;
use super::rpc;
use super::wire::{Empty, SnapshotResponse};
use crate::store::StoreError;

/// What was saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    pub bytes: u64,
    /// Of the database, in hexadecimal.
    pub sha256: String,
}

const HASH: usize = 32;

/// A member that sends nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(30);

impl EtcdAdmin {
    /// Saves what the first endpoint that answers holds. The file appears whole and
    /// checked, or not at all. Only root may read it: it holds every secret.
    pub async fn snapshot(&self, to: &Path) -> Result<SnapshotInfo, StoreError> {
        let channel = self.first_channel().await?;
        let stream = rpc::server_streaming(channel, rpc::SNAPSHOT, Empty {}, SILENCE).await;
        let stream = stream.map_err(|status| plain(failure(&status)))?;
        let mut part = to.as_os_str().to_owned();
        part.push(".part");
        let part = Path::new(&part);
        let saved = save(stream, part).await;
        if saved.is_err() {
            // The error that counts is the one before.
            let _ = fs::remove_file(part).await;
            return saved;
        }
        let appear = async {
            fs::rename(part, to).await?;
            let dir = to.parent().filter(|dir| !dir.as_os_str().is_empty());
            File::open(dir.unwrap_or(Path::new("."))).await?.sync_all().await
        };
        appear.await.map_err(|e| unwritten(to, &e))?;
        saved
    }
}

fn unwritten(path: &Path, error: &io::Error) -> StoreError {
    StoreError::Unavailable(format!("cannot write the backup {}: {error}", path.display()))
}

async fn save(
    mut stream: Streaming<SnapshotResponse>,
    part: &Path,
) -> Result<SnapshotInfo, StoreError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(part).await.map_err(|e| unwritten(part, &e))?;
    let mut check = Check::default();
    loop {
        let next = tokio::time::timeout(SILENCE, stream.message()).await;
        let broke = |why: String| StoreError::Unavailable(format!("the backup broke off: {why}"));
        let next = next.map_err(|_| broke(format!("nothing came for {SILENCE:?}")))?;
        let Some(answer) = next.map_err(|status| broke(chain(&status)))? else { break };
        file.write_all(&answer.blob).await.map_err(|e| unwritten(part, &e))?;
        check.add(&answer.blob);
    }
    file.sync_all().await.map_err(|e| unwritten(part, &e))?;
    check.finish()
}

/// Hashes all but the last 32 bytes, which are the hash.
#[derive(Default)]
struct Check {
    hash: Sha256,
    tail: Vec<u8>,
    bytes: u64,
}

impl Check {
    fn add(&mut self, blob: &[u8]) {
        self.bytes += blob.len() as u64;
        self.tail.extend_from_slice(blob);
        let known = self.tail.len().saturating_sub(HASH);
        self.hash.update(&self.tail[..known]);
        self.tail.drain(..known);
    }

    fn finish(self) -> Result<SnapshotInfo, StoreError> {
        let hash = self.hash.finalize();
        if self.tail != hash[..] {
            let why = "the backup arrived damaged: its checksum does not fit; make it again";
            return Err(StoreError::Unavailable(why.to_owned()));
        }
        let sha256 = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(SnapshotInfo { bytes: self.bytes, sha256 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_or_cut_snapshot_is_refused() {
        let data = vec![7u8; 1000];
        let whole = [&data[..], &Sha256::digest(&data)[..]].concat();
        let check = |bytes: &[u8], blob: usize, good: bool| {
            let mut check = Check::default();
            bytes.chunks(blob).for_each(|blob| check.add(blob));
            assert_eq!(check.finish().is_ok(), good, "{} bytes by {blob}", bytes.len());
        };
        for blob in [1, 31, 32, 33, 500, 5000] {
            check(&whole, blob, true);
            check(&whole[..whole.len() - 1], blob, false);
            check(&whole[1..], blob, false);
        }
        check(&[], 1, false);
    }
}

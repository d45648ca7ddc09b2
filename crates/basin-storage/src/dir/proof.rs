//! Whether two servers have the same storage at a datastore's path.
//!
//! The mark in the directory proves little: a copy of it has the mark too. So one
//! server writes something new (a proof) into its file and names it to the other by
//! another way; the other looks for it, and answers in the directory in turn. And as
//! volumes are protected by locks, each looks for the lock that the other holds.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use basin_model::HostId;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::servers::{Servers, open, present};
use super::stage::remove;
use crate::datastore::{Proof, StorageError};

/// How long a server's writing may take to be seen by another one. NFS shows what
/// was written before a file is opened; a little is for slow servers.
const SEEN_WITHIN: Duration = Duration::from_secs(8);
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const ANSWER: &str = "answer-";
/// An answer that nobody fetched by then is removed.
const ANSWER_LIFE: Duration = Duration::from_secs(600);
/// A proof in hex with dashes.
const LENGTH: usize = 36;

impl Servers {
    /// Writes something that no server has seen.
    pub fn prove(&self) -> Result<Proof, StorageError> {
        let proof = Proof(Uuid::new_v4());
        self.own
            .write_all_at(proof.to_string().as_bytes(), 0)
            .and_then(|()| self.own.sync_all())
            .map_err(|e| self.io("writing a proof", e))?;
        Ok(proof)
    }

    /// Looks for what the server `from` says it just wrote; answers in the directory.
    pub fn witness(
        &self,
        from: HostId,
        proof: Proof,
        cancel: &CancellationToken,
    ) -> Result<Proof, StorageError> {
        let what = "what the other server wrote there is not to be seen here";
        let path = self.file_of(from);
        self.until(what, cancel, || {
            // With leave to create: a client of NFS then asks its server instead of
            // remembering that there was no such file.
            let file = open(&path)?;
            let mut found = [0; LENGTH];
            Ok(file.read_exact_at(&mut found, 0).is_ok() && found == *proof.to_string().as_bytes())
        })?;
        self.sees_lock(from, cancel)?;
        self.sweep_answers().map_err(|e| self.io("looking after answers", e))?;
        let answer = Proof(Uuid::new_v4());
        fs::write(self.answer_to(proof), answer.to_string())
            .map_err(|e| self.io("answering a proof", e))?;
        Ok(answer)
    }

    /// Looks for the answer that `by` says it gave to `proof`.
    pub fn confirm(
        &self,
        by: HostId,
        proof: Proof,
        answer: Proof,
        cancel: &CancellationToken,
    ) -> Result<(), StorageError> {
        let what = "what was written here is to be seen there, but not the other way around";
        let path = self.answer_to(proof);
        self.until(what, cancel, || {
            // As above; a file that was not there is removed below.
            let file = open(&path)?;
            let mut found = [0; LENGTH];
            Ok(file.read_exact_at(&mut found, 0).is_ok() && found == *answer.to_string().as_bytes())
        })
        .and_then(|()| self.sees_lock(by, cancel))
        .inspect_err(|_| _ = remove(&path))?;
        remove(&path).map_err(|e| self.io("removing an answer", e))?;
        Ok(())
    }

    fn sees_lock(&self, of: HostId, cancel: &CancellationToken) -> Result<(), StorageError> {
        let what = "files are the same, but a lock that one server holds does not exist for the \
                    other; mount it with locks (NFS: version 4.2, or version 3 without 'nolock')";
        let path = self.file_of(of);
        self.until(what, cancel, || present(&open(&path)?))
    }

    fn until(
        &self,
        what: &str,
        cancel: &CancellationToken,
        mut seen: impl FnMut() -> io::Result<bool>,
    ) -> Result<(), StorageError> {
        let since = Instant::now();
        loop {
            if seen().map_err(|e| self.io("looking for another server's file", e))? {
                return Ok(());
            }
            if cancel.is_cancelled() {
                return Err(StorageError::Cancelled);
            }
            if since.elapsed() > SEEN_WITHIN {
                let place = self.root.display().to_string();
                return Err(StorageError::Unshared { place, why: what.to_owned() });
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    fn answer_to(&self, proof: Proof) -> PathBuf {
        self.directory.join(format!("{ANSWER}{proof}"))
    }

    fn sweep_answers(&self) -> io::Result<()> {
        let now = SystemTime::now();
        for entry in self.directory.read_dir()? {
            let entry = entry?;
            let old = || {
                let modified = entry.metadata().and_then(|m| m.modified()).unwrap_or(now);
                now.duration_since(modified).unwrap_or_default() > ANSWER_LIFE
            };
            if entry.file_name().to_string_lossy().starts_with(ANSWER) && old() {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    fn io(&self, what: &str, source: io::Error) -> StorageError {
        StorageError::Io { what: format!("{what} in {}", self.root.display()), source }
    }
}

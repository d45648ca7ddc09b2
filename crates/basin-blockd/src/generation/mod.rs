//! The fence at the disk itself: a file beside each volume that says which
//! generation wrote to it last. Whoever opens the volume for writing holds its lock,
//! looks here, and is refused if a newer one has been. So an owner that was cut off
//! and comes back cannot write, whatever it believes (DESIGN D5, D11).
//!
//! The file is written in place and not replaced by a rename: a server that sees it
//! over NFS may know a name's old file for a while, but what it reads of a file that
//! it has just locked is never stale.

mod record;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use basin_model::{Generation, VolumeId};

use crate::control::ErrorCode;
use crate::io::{DiskError, lock};
use record::{Found, PLACE, Record};

/// Who opens a volume.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    pub volume: VolumeId,
    pub generation: Generation,
}

/// What the file beside a volume's file adds to its name. `basin-storage` deletes it
/// along with the volume.
const SUFFIX: &str = ".generation";

fn beside(volume: &Path) -> PathBuf {
    let mut name = volume.as_os_str().to_owned();
    name.push(SUFFIX);
    name.into()
}

impl Claim {
    /// Looks, without a lock, whether the claim would be refused. What another server
    /// has written may not be seen yet: only [`Claim::take`] is sure.
    pub fn look(self, volume: &Path) -> Result<(), DiskError> {
        let path = beside(volume);
        let Ok(file) = File::open(&path) else { return Ok(()) };
        let judged = read(&file).and_then(|last| self.judge(last));
        judged.map(drop).map_err(|why| self.explain(&path, why))
    }

    /// Claims the volume whose file is locked for writing by the caller. Refused if a
    /// newer generation has claimed it; noted durably if it is the newest. Block
    /// devices have no place for it.
    pub fn take(self, volume: &Path, file: &File) -> Result<(), DiskError> {
        if !file.metadata().is_ok_and(|m| m.is_file()) {
            return Ok(());
        }
        let path = beside(volume);
        self.take_at(&path).map_err(|why| self.explain(&path, why))
    }

    fn explain(self, path: &Path, why: Refused) -> DiskError {
        match why {
            Refused::Newer(record) => DiskError::new(
                ErrorCode::Fenced,
                format!(
                    "generation {} no longer holds volume {}: generation {} of {} has written \
                     to it ({})",
                    self.generation,
                    self.volume,
                    record.generation,
                    record.by,
                    path.display()
                ),
            ),
            Refused::Other(record) => DiskError::new(
                ErrorCode::Invalid,
                format!(
                    "{} belongs to volume {}, not to {}: if the volume's file was copied here, \
                     delete this one",
                    path.display(),
                    record.volume,
                    self.volume
                ),
            ),
            Refused::Garbage => DiskError::new(
                ErrorCode::Corrupt,
                format!(
                    "{} is not readable, so nobody knows who wrote to the volume last: make \
                     sure that no server uses it, then delete this file",
                    path.display()
                ),
            ),
            Refused::Io(e) => DiskError::new(
                ErrorCode::Io,
                format!("cannot note the generation in {}: {e}", path.display()),
            ),
        }
    }

    fn take_at(self, path: &Path) -> Result<(), Refused> {
        let (file, new) = open(path)?;
        // The volume's lock keeps others away; this one makes NFS ask its server.
        if !lock::lock(&file, lock::Mode::Exclusive)? {
            return Err(Refused::Io(io::Error::from_raw_os_error(libc::EBUSY)));
        }
        let Some(serial) = self.judge(read(&file)?)? else { return Ok(()) };
        let record =
            Record { serial, generation: self.generation, volume: self.volume, by: this_server() };
        let (at, place) = record::write(&record);
        file.write_all_at(&place, at)?;
        file.sync_all()?;
        if new && let Some(dir) = path.parent() {
            File::open(dir)?.sync_all()?;
        }
        Ok(())
    }

    /// The serial number to write with; `None` if there is nothing to write.
    fn judge(self, last: Found) -> Result<Option<u64>, Refused> {
        match last {
            Found::Garbage => Err(Refused::Garbage),
            Found::Nothing => Ok(Some(1)),
            Found::Record(last) if last.volume != self.volume => Err(Refused::Other(last)),
            Found::Record(last) if last.generation > self.generation => Err(Refused::Newer(last)),
            Found::Record(last) if last.generation == self.generation => Ok(None),
            Found::Record(last) => Ok(Some(last.serial + 1)),
        }
    }
}

fn read(file: &File) -> Result<Found, Refused> {
    let mut bytes = [0; 2 * PLACE];
    let n = read_up_to(file, &mut bytes)?;
    Ok(record::read(&bytes[..n]))
}

enum Refused {
    Newer(Record),
    Other(Record),
    Garbage,
    Io(io::Error),
}

impl From<io::Error> for Refused {
    fn from(e: io::Error) -> Refused {
        Refused::Io(e)
    }
}

/// Also says whether it may have just appeared.
fn open(path: &Path) -> io::Result<(File, bool)> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    match options.open(path) {
        Ok(file) => Ok((file, false)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Ok((options.create(true).open(path)?, true))
        }
        Err(e) => Err(e),
    }
}

fn read_up_to(file: &File, bytes: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], done as u64)? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}

fn this_server() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "unknown".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(generation: u64) -> Claim {
        let volume = "62617369-6e00-0000-0000-000000000000".parse().unwrap();
        Claim { volume, generation: Generation(generation) }
    }

    fn check(path: &Path, claim: Claim, expect: Option<ErrorCode>) {
        let file = File::open(path).unwrap();
        let outcome = claim.take(path, &file);
        assert_eq!(outcome.as_ref().err().map(|e| e.code), expect, "{outcome:?}");
    }

    #[test]
    fn only_the_newest_generation_may_write() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.raw");
        File::create(&path).unwrap();
        check(&path, claim(3), None);
        check(&path, claim(3), None);
        check(&path, claim(2), Some(ErrorCode::Fenced));
        check(&path, claim(7), None);
        check(&path, claim(3), Some(ErrorCode::Fenced));
        check(&path, claim(7), None);
        check(&path, claim(8), None);
        check(&path, claim(7), Some(ErrorCode::Fenced));
    }

    #[test]
    fn what_cannot_be_read_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.raw");
        File::create(&path).unwrap();
        std::fs::write(beside(&path), [b'x'; 2 * PLACE]).unwrap();
        check(&path, claim(9), Some(ErrorCode::Corrupt));
        assert_eq!(std::fs::read(beside(&path)).unwrap(), [b'x'; 2 * PLACE]);
    }

    #[test]
    fn the_file_of_another_volume_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.raw");
        File::create(&path).unwrap();
        check(&path, claim(1), None);
        let other = "00000000-0000-0000-0000-000000000001".parse().unwrap();
        check(&path, Claim { volume: other, generation: Generation(5) }, Some(ErrorCode::Invalid));
    }

    #[test]
    fn a_device_has_none() {
        let path = Path::new("/dev/null");
        check(path, claim(1), None);
        assert!(!beside(path).exists());
    }
}

//! One daemon a state directory.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use basin_model::task::Problem;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::problem::problem;

/// Held until dropped. The kernel lets go when the process dies, however it dies.
pub struct StateLock(#[allow(dead_code, reason = "held for its lock")] Flock<File>);

/// Claims the directory, or names who has it.
pub fn claim(state_dir: &Path) -> Result<StateLock, Problem> {
    let path = state_dir.join("lock");
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        let detail = format!("cannot {what} {}: {error}", path.display());
        problem("state-dir-unusable", detail, "run the daemon as root, and check the file system")
    };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(&path).map_err(|e| failed("open", &e))?;
    let mut lock = match patiently(file) {
        Ok(lock) => lock,
        Err((mut file, Errno::EAGAIN)) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            let detail = format!(
                "the state directory {} is in use by another daemon, process {}",
                state_dir.display(),
                pid.trim()
            );
            let advice = "stop that daemon, or give this one a --state-dir of its own";
            return Err(problem("state-dir-in-use", detail, advice));
        }
        Err((_, error)) => return Err(failed("lock", &error)),
    };
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        writeln!(file, "{}", std::process::id())
    };
    write(&mut lock).map_err(|e| failed("write", &e))?;
    Ok(StateLock(lock))
}

/// A daemon that was killed may have been starting a program, which holds what it
/// inherited until it runs.
const PATIENCE: Duration = Duration::from_secs(2);

fn patiently(mut file: File) -> Result<Flock<File>, (File, Errno)> {
    let since = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Err((back, Errno::EAGAIN)) if since.elapsed() < PATIENCE => file = back,
            result => return result,
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_was_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = claim(dir.path()).unwrap();
        let refused = claim(dir.path()).err().unwrap();
        assert_eq!(refused.code, "state-dir-in-use");
        assert!(refused.detail.contains(&std::process::id().to_string()), "{}", refused.detail);
        drop(first);
        claim(dir.path()).unwrap();
    }
}

//! Files: written whole or not at all, and logs that do not grow for ever.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::engine::EngineError;

/// What is kept of a log.
pub const LOG_TAIL: u64 = 1 << 20;
/// A log is cut once it is this long, so that not every line costs a cut.
const LOG_MAX: u64 = 2 * LOG_TAIL;

/// Adds what was being done.
pub fn doing<T>(result: io::Result<T>, what: impl FnOnce() -> String) -> Result<T, EngineError> {
    result.map_err(|source| EngineError::Io { what: what(), source })
}

/// Writes a file that readers see whole or not at all. Without fsync: it describes a
/// process, which no crash of the host survives.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary(path);
    write_new(&temporary, bytes)?;
    fs::rename(&temporary, path)
}

/// As [`replace`], and on disk when it returns.
pub fn replace_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary(path);
    write_new(&temporary, bytes)?.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    Ok(file)
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}

/// Makes a directory for root alone, and its parents.
pub fn private_dir(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Opens a log for appending. The machine's user owns it; nobody else reads it.
pub fn open_log(path: &Path, uid: u32) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(path)?;
    std::os::unix::fs::fchown(&file, Some(uid), Some(uid))?;
    Ok(file)
}

/// A listening socket in place of whatever was there.
pub fn listen(path: &Path, uid: u32) -> io::Result<UnixListener> {
    remove(path)?;
    let listener = UnixListener::bind(path)?;
    chown(path, Some(uid), Some(uid))?;
    Ok(listener)
}

pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Opens a VM's UEFI variables; makes them from OVMF's template the first time.
pub fn open_nvram(path: &Path, template: &Path, uid: u32) -> io::Result<File> {
    if !path.exists() {
        replace_durably(path, &fs::read(template)?)?;
    }
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    std::os::unix::fs::fchown(&file, Some(uid), Some(uid))?;
    Ok(file)
}

/// Cuts a log that somebody appends to down to its last MiB, in place, once it is twice
/// as long. What is written while it is cut may be lost.
pub fn trim(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = match options.read(true).append(true).custom_flags(libc::O_NOFOLLOW).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let size = file.metadata()?.len();
    if size < LOG_MAX {
        return Ok(());
    }
    // Whole blocks from the front, without a copy or a gap, where the file system can.
    let cut = (size - LOG_TAIL) & !((64 << 10) - 1);
    if let Ok(len) = i64::try_from(cut) {
        // SAFETY: an open descriptor and integers.
        let done =
            unsafe { libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_COLLAPSE_RANGE, 0, len) };
        if done == 0 {
            return Ok(());
        }
    }
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(size - LOG_TAIL))?;
    file.take(LOG_TAIL).read_to_end(&mut tail)?;
    let mut file = options.open(path)?;
    file.set_len(0)?;
    file.write_all(&tail)
}

/// The last thing a log says after `from`, for an error message.
pub fn last_words(path: &Path, from: u64) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let size = file.metadata().ok()?.len();
    let start = if size < from { 0 } else { from };
    file.seek(SeekFrom::Start(start.max(size.saturating_sub(4096)))).ok()?;
    let mut bytes = Vec::new();
    file.take(4096).read_to_end(&mut bytes).ok()?;
    words(&String::from_utf8_lossy(&bytes))
}

/// The last line that says something, without the time stamp and the program's name.
fn words(text: &str) -> Option<String> {
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    let line = match line.split_once("Z ") {
        Some((stamp, rest)) if stamp.contains('T') && !stamp.contains(' ') => rest,
        _ => line,
    };
    let line = line.strip_prefix("qemu-system-x86_64: ").unwrap_or(line);
    Some(line.chars().filter(|c| !c.is_control()).take(500).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_keeps_its_end_and_its_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut writer = open_log(&path, 0).unwrap();
        let line = |n: u64| format!("{n:015}\n");
        let lines = 3 * LOG_TAIL / 16;
        for n in 0..lines {
            writer.write_all(line(n).as_bytes()).unwrap();
        }
        trim(&path).unwrap();
        writer.write_all(b"after").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.len() as u64 <= LOG_TAIL + (64 << 10) + 5, "{}", text.len());
        assert!(text.ends_with(&format!("{}after", line(lines - 1))));
        let before = text.len();
        trim(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), before as u64);
        trim(&dir.path().join("absent")).unwrap();
    }

    #[test]
    fn the_last_words_are_the_message() {
        let check = |text: &str, expect: Option<&str>| assert_eq!(words(text).as_deref(), expect);
        check(
            "x\n2026-01-02T03:04:05.123456Z qemu-system-x86_64: no such CPU\n\n",
            Some("no such CPU"),
        );
        check("plain\x1b[0m\n", Some("plain[0m"));
        check("\n \n", None);
    }

    #[test]
    fn variables_are_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let (template, vars) = (dir.path().join("template"), dir.path().join("vars"));
        fs::write(&template, "fresh").unwrap();
        open_nvram(&vars, &template, 0).unwrap().write_all(b"boot0").unwrap();
        open_nvram(&vars, &template, 0).unwrap();
        assert_eq!(fs::read_to_string(&vars).unwrap(), "boot0");
    }
}

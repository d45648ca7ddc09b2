//! Files that are whole or not there, and files that a guest's process may have swapped.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Writes the file so that a crash leaves the old content or the new, never a part.
/// Makes its directory. It is root's, or `owner`'s.
pub fn write(path: &Path, content: &[u8], mode: u32, owner: Option<u32>) -> io::Result<()> {
    put(path, content, mode, owner, true)
}

/// As [`write`], but a power failure may lose it or leave it empty: for what
/// describes things that no power failure survives.
pub fn write_briefly(path: &Path, content: &[u8], mode: u32, owner: Option<u32>) -> io::Result<()> {
    put(path, content, mode, owner, false)
}

fn put(
    path: &Path,
    content: &[u8],
    mode: u32,
    owner: Option<u32>,
    durably: bool,
) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(dir)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = dir.join(format!(".{name}.new"));
    // Whoever owns the directory may have put something in the way.
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(content)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    if let Some(uid) = owner {
        std::os::unix::fs::fchown(&file, Some(uid), Some(uid))?;
    }
    if durably {
        file.sync_all()?;
    }
    fs::rename(&temporary, path)?;
    if durably {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

/// Opens a file in a directory that an unprivileged process may write: what it put
/// there must be a plain file of its own, not a way to somebody else's.
pub fn open_untrusted(path: &Path, write: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(write).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = options.open(path)?;
    let about = file.metadata()?;
    if !about.is_file() || about.nlink() > 1 {
        let why = format!("{} is not a plain file", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        write(&secret, b"x", 0o600, None).unwrap();
        let symbolic = dir.path().join("symbolic");
        std::os::unix::fs::symlink(&secret, &symbolic).unwrap();
        assert!(open_untrusted(&symbolic, false).is_err());
        assert!(open_untrusted(&secret, false).is_ok());
        fs::hard_link(&secret, dir.path().join("hard")).unwrap();
        assert!(open_untrusted(&dir.path().join("hard"), true).is_err());
    }
}

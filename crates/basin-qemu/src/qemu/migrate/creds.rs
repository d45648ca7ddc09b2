//! The files in which QEMU gets the key of a migration.
//!
//! Only the VM's own user can read them. A source has read its key when `object-add`
//! returns; a target reads its at each connection, so that stays until the guest is there.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown};
use std::path::Path;

use crate::migrate::MigrationKey;

/// Who the source says it is. QEMU has one name for all that say none.
pub const USER: &str = "qemu";

/// RFC 7919's group of 2048 bits. Without a file QEMU would search for a prime of its own
/// first, for seconds; TLS 1.3 uses it for nothing.
const FFDHE2048: &str = "-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
";

/// Writes the key into the new directory `dir`.
pub fn write(dir: &Path, key: &MigrationKey, uid: u32) -> io::Result<()> {
    remove(dir);
    DirBuilder::new().mode(0o700).create(dir)?;
    write_one(&dir.join("keys.psk"), &format!("{USER}:{}\n", key.hex()), uid)?;
    write_one(&dir.join("dh-params.pem"), FFDHE2048, uid)?;
    chown(dir, Some(uid), Some(uid))
}

fn write_one(path: &Path, text: &str, uid: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(path)?;
    file.write_all(text.as_bytes())?;
    std::os::unix::fs::fchown(&file, Some(uid), Some(uid))
}

/// Removes the key, if there is one.
pub fn remove(dir: &Path) {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(dir = %dir.display(), %error, "cannot remove a migration's key");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_key_is_for_its_vm_alone_and_goes() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("migration");
        for _ in 0..2 {
            let key = MigrationKey::fresh();
            write(&dir, &key, 4242).unwrap();
            let file = dir.join("keys.psk");
            let text = fs::read_to_string(&file).unwrap();
            assert_eq!(text, format!("qemu:{}\n", key.hex()));
            for (path, mode) in [(&dir, 0o700), (&file, 0o400)] {
                let meta = fs::metadata(path).unwrap();
                assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (4242, 4242, mode));
            }
        }
        remove(&dir);
        remove(&dir);
        assert!(!dir.exists());
    }
}

//! Images that are built once for each recipe and set of package versions.
//!
//! `NAME-KEY/` holds the files, `NAME` is a symlink to the newest. A build happens
//! in `.tmp-NAME` under a lock and becomes visible by a rename, so that a killed
//! build leaves nothing that would be taken for an image.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use sha2::{Digest, Sha256};

/// What an image is made of; anything that changes the outcome belongs in here.
#[derive(Default)]
pub struct Key(Sha256);

impl Key {
    pub fn add(&mut self, name: &str, content: impl AsRef<[u8]>) -> &mut Key {
        for part in [name.as_bytes(), content.as_ref()] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    pub fn finish(&self) -> String {
        let digest = self.0.clone().finalize();
        digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Builds `name` unless it is there, and returns its directory.
pub fn ensure(
    cache: &Path,
    name: &str,
    key: &Key,
    build: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let _lock = lock(&cache.join(format!(".lock-{name}")))?;

    let versioned = format!("{name}-{}", key.finish());
    let done = cache.join(&versioned);
    let link = cache.join(name);
    if !done.exists() {
        println!("images: building {name}");
        let start = Instant::now();
        let work = cache.join(format!(".tmp-{name}"));
        remove_tree(&work)?;
        fs::create_dir(&work)?;
        build(&work)?;
        sync_files(&work)?;
        fs::rename(&work, &done)?;
        println!("images: built {name} in {:.1} s", start.elapsed().as_secs_f64());
    }
    if fs::read_link(&link).is_ok_and(|target| target == Path::new(&versioned)) {
        return Ok(done);
    }
    let fresh = cache.join(format!(".link-{name}"));
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ => symlink(&versioned, &fresh)?,
    }
    fs::rename(&fresh, &link)?;
    remove_others(cache, name, &versioned)?;
    Ok(done)
}

/// Held until the file is dropped here and in every program that the build started:
/// they outlive a killed build for a while, and still write into its directory.
fn lock(path: &Path) -> Result<File> {
    let file = File::create(path)?;
    fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty()))?;
    file.lock().context("cannot lock the image cache")?;
    Ok(file)
}

/// Earlier versions; who has one open keeps it until it is closed.
fn remove_others(cache: &Path, name: &str, keep: &str) -> Result<()> {
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        let file_name = entry.file_name();
        let version =
            file_name.to_str().and_then(|text| text.strip_prefix(name)?.strip_prefix('-'));
        let is_version = version
            .is_some_and(|key| key.len() == 16 && key.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if is_version && file_name != keep {
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.with_context(|| format!("cannot remove {}", path.display())),
    }
}

fn sync_files(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        File::open(entry?.path())?.sync_all()?;
    }
    Ok(File::open(dir)?.sync_all()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        let mut key = Key::default();
        key.add("recipe", text);
        key
    }

    fn text(dir: &Path) -> String {
        fs::read_to_string(dir.join("file")).unwrap()
    }

    #[test]
    fn an_image_is_built_once_a_key_and_the_link_follows() {
        let cache = tempfile::tempdir().unwrap();
        let cache = cache.path();
        let build = |content: &'static str| {
            move |dir: &Path| -> Result<()> { Ok(fs::write(dir.join("file"), content)?) }
        };
        ensure(cache, "micro", &key("a"), build("first")).unwrap();
        ensure(cache, "micro-x", &key("a"), build("neighbour")).unwrap();
        ensure(cache, "micro", &key("a"), build("not again")).unwrap();
        assert_eq!(text(&cache.join("micro")), "first");

        let first = fs::canonicalize(cache.join("micro")).unwrap();
        ensure(cache, "micro", &key("b"), build("second")).unwrap();
        assert_eq!(text(&cache.join("micro")), "second");
        assert!(!first.exists());
        assert_eq!(text(&cache.join("micro-x")), "neighbour");
    }

    #[test]
    fn a_failed_build_leaves_no_image_and_the_next_one_starts_afresh() {
        let cache = tempfile::tempdir().unwrap();
        let cache = cache.path();
        let failed = ensure(cache, "micro", &key("a"), |dir| {
            fs::write(dir.join("half"), "")?;
            anyhow::bail!("power cut")
        });
        assert!(failed.is_err());
        assert!(!cache.join("micro").exists());
        let dir = ensure(cache, "micro", &key("a"), |dir| {
            assert!(!dir.join("half").exists());
            Ok(fs::write(dir.join("file"), "whole")?)
        });
        assert_eq!(text(&dir.unwrap()), "whole");
    }

    #[test]
    fn the_lock_outlives_a_killed_build_until_its_programs_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = lock(&path).unwrap();
        let mut program = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        drop(held);
        let other = File::create(&path).unwrap();
        let refused = other.try_lock();
        program.kill().unwrap();
        program.wait().unwrap();
        assert!(matches!(refused, Err(fs::TryLockError::WouldBlock)));
        // Another test's program may have been started in between, and holds it too.
        other.lock().unwrap();
    }

    #[test]
    fn parts_of_a_key_do_not_run_into_each_other() {
        let mut one = Key::default();
        one.add("ab", "c");
        let mut other = Key::default();
        other.add("a", "bc");
        assert_ne!(one.finish(), other.finish());
    }
}

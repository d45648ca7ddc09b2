//! The exports on disk, so that a restarted blockd serves at once, without the daemon.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use basin_model::VolumeId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::control::{Export, Mirror};

/// A mirror that was begun: it ends with the process, and must not be forgotten.
#[derive(Serialize, Deserialize)]
pub struct Begun {
    pub mirror: Mirror,
    /// The other side may know that it has everything, and may use it.
    pub gone: bool,
}

/// A directory with a file an export, and one a mirror of it.
pub struct ExportDir {
    path: PathBuf,
}

impl ExportDir {
    pub fn open(path: PathBuf) -> io::Result<ExportDir> {
        fs::create_dir_all(&path)?;
        Ok(ExportDir { path })
    }

    fn file(&self, volume: VolumeId) -> PathBuf {
        self.path.join(format!("{volume}.json"))
    }

    fn mirror_file(&self, volume: VolumeId) -> PathBuf {
        self.path.join(format!("{volume}.mirror"))
    }

    pub fn save(&self, export: &Export) -> io::Result<()> {
        self.write(&self.file(export.volume), export)
    }

    fn write(&self, path: &Path, what: &impl Serialize) -> io::Result<()> {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".tmp");
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(what)?)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        self.sync()
    }

    pub fn remove(&self, volume: VolumeId) -> io::Result<()> {
        remove(&self.file(volume))?;
        self.forget_mirror(volume)
    }

    pub fn save_mirror(&self, mirror: &Mirror, gone: bool) -> io::Result<()> {
        let begun = Begun { mirror: mirror.clone(), gone };
        self.write(&self.mirror_file(mirror.volume), &begun)
    }

    /// A hand-over by a mirror was called off.
    pub fn came_back(&self, volume: VolumeId) -> io::Result<()> {
        match self.mirror(volume) {
            Some(Begun { mirror, gone: true }) => self.save_mirror(&mirror, false),
            _ => Ok(()),
        }
    }

    pub fn forget_mirror(&self, volume: VolumeId) -> io::Result<()> {
        remove(&self.mirror_file(volume))?;
        self.sync()
    }

    pub fn mirror(&self, volume: VolumeId) -> Option<Begun> {
        let path = self.mirror_file(volume);
        match read(&path) {
            Ok(begun) => Some(begun),
            Err(e) => {
                if e.kind() != io::ErrorKind::NotFound {
                    tracing::error!(path = %path.display(), error = %e, "unreadable mirror");
                }
                None
            }
        }
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    /// All exports. What cannot be read is left alone and logged: the daemon asks again.
    pub fn load(&self) -> io::Result<Vec<Export>> {
        let mut exports = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            match path.extension().and_then(|e| e.to_str()) {
                Some("json") => match read(&path) {
                    Ok(export) => exports.push(export),
                    Err(e) => {
                        tracing::error!(path = %path.display(), error = %e, "unreadable export")
                    }
                },
                // A write that a crash cut short.
                Some("tmp") => fs::remove_file(&path)?,
                _ => {}
            }
        }
        Ok(exports)
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

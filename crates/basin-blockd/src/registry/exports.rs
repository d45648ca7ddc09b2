//! The exports on disk, so that a restarted blockd serves at once, without the daemon.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use basin_model::VolumeId;

use crate::control::Export;

/// A directory with a file an export.
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

    pub fn save(&self, export: &Export) -> io::Result<()> {
        let path = self.file(export.volume);
        let temporary = path.with_extension("tmp");
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(export)?)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        self.sync()
    }

    pub fn remove(&self, volume: VolumeId) -> io::Result<()> {
        match fs::remove_file(self.file(volume)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => self.sync(),
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

fn read(path: &Path) -> io::Result<Export> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

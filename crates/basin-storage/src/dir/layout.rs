//! Pure. Where everything is in a datastore's directory.

use std::path::{Path, PathBuf};

use basin_model::volume::VolumeFormat;
use basin_model::{ImageId, VolumeId};
use uuid::Uuid;

use crate::datastore::UploadId;

/// Names the datastore that a directory is.
pub const MARKER: &str = ".basin-datastore";
/// Locked by the daemon that uses the directory.
pub const LOCK: &str = ".basin-lock";
pub const IMAGES: &str = "images";
pub const VOLUMES: &str = "volumes";
pub const INCOMING: &str = "incoming";
/// What every upload's name starts with.
pub const UPLOAD: &str = "upload-";
/// What an image's description ends with.
pub const ABOUT: &str = "json";

pub const FORMATS: [VolumeFormat; 2] = [VolumeFormat::Raw, VolumeFormat::Qcow2];

pub const fn extension(format: VolumeFormat) -> &'static str {
    match format {
        VolumeFormat::Raw => "raw",
        VolumeFormat::Qcow2 => "qcow2",
    }
}

/// The paths below one datastore's directory.
#[derive(Debug, Clone)]
pub struct Layout {
    pub root: PathBuf,
}

impl Layout {
    pub fn images(&self) -> PathBuf {
        self.root.join(IMAGES)
    }
    pub fn volumes(&self) -> PathBuf {
        self.root.join(VOLUMES)
    }
    pub fn incoming(&self) -> PathBuf {
        self.root.join(INCOMING)
    }
    pub fn image(&self, image: ImageId, format: VolumeFormat) -> PathBuf {
        self.images().join(format!("{image}.{}", extension(format)))
    }
    /// What the import found out about an image.
    pub fn about(&self, image: ImageId) -> PathBuf {
        self.images().join(format!("{image}.{ABOUT}"))
    }
    pub fn volume(&self, volume: VolumeId, format: VolumeFormat) -> PathBuf {
        self.volumes().join(format!("{volume}.{}", extension(format)))
    }
    /// What blockd notes beside a volume's file: the generation that wrote to it last.
    pub fn generation(&self, volume: VolumeId, format: VolumeFormat) -> PathBuf {
        self.volumes().join(format!("{volume}.{}.generation", extension(format)))
    }
    pub fn upload(&self, upload: UploadId) -> PathBuf {
        self.incoming().join(format!("{UPLOAD}{}", upload.0))
    }
    pub fn temporary(&self, unique: Uuid) -> PathBuf {
        self.incoming().join(format!("tmp-{unique}"))
    }

    /// How a volume's header names the file below it. Relative within the
    /// datastore, so that it stays right when the datastore is mounted elsewhere.
    pub fn backing_name(&self, layer: &Path) -> PathBuf {
        match layer.strip_prefix(&self.root) {
            Ok(inside) => Path::new("..").join(inside),
            Err(_) => layer.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backing_file_is_named_from_the_volumes_directory() {
        let layout = Layout { root: "/srv/store".into() };
        let check = |layer: &str, expect: &str| {
            assert_eq!(layout.backing_name(Path::new(layer)), Path::new(expect));
        };
        check("/srv/store/images/a.qcow2", "../images/a.qcow2");
        check("/srv/store/volumes/a.raw", "../volumes/a.raw");
        check("/srv/other/images/a.qcow2", "/srv/other/images/a.qcow2");
        check("/srv/store2/images/a.qcow2", "/srv/store2/images/a.qcow2");
    }
}

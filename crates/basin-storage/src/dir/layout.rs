//! Pure. Where everything is in a datastore's directory.

use std::path::{Path, PathBuf};

use basin_model::volume::VolumeFormat;
use basin_model::{HostId, ImageId, VolumeId};
use uuid::Uuid;

use crate::datastore::UploadId;

/// Names the datastore that a directory is.
pub const MARKER: &str = ".basin-datastore";
/// Locked by the daemon that has the directory for itself.
pub const LOCK: &str = ".basin-lock";
/// Where the daemons that share the directory have a file each.
pub const SERVERS: &str = ".basin-servers";
pub const IMAGES: &str = "images";
pub const VOLUMES: &str = "volumes";
pub const INCOMING: &str = "incoming";
/// What every temporary's name starts with.
pub const TEMPORARY: &str = "tmp-";
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
    /// This server, where it shares the directory with others.
    pub sharer: Option<HostId>,
}

impl Layout {
    pub fn marker(&self) -> PathBuf {
        self.root.join(MARKER)
    }
    pub fn servers(&self) -> PathBuf {
        self.root.join(SERVERS)
    }
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
    /// Named after the server that writes it, which alone may sweep it while it lives.
    pub fn temporary(&self, unique: Uuid) -> PathBuf {
        let whose = self.sharer.map(|host| format!("{host}_")).unwrap_or_default();
        self.incoming().join(format!("{TEMPORARY}{whose}{unique}"))
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

/// Whose temporary it is: known of those in a shared datastore.
pub fn writer(name: &str) -> Option<HostId> {
    name.strip_prefix(TEMPORARY)?.split_once('_')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_tells_whose_it_is() {
        let host = HostId::from_uuid(Uuid::new_v4());
        let check = |sharer: Option<HostId>| {
            let layout = Layout { root: "/srv/store".into(), sharer };
            let path = layout.temporary(Uuid::new_v4());
            assert_eq!(writer(path.file_name().unwrap().to_str().unwrap()), sharer);
        };
        check(None);
        check(Some(host));
        assert_eq!(writer("upload-x"), None);
    }

    #[test]
    fn a_backing_file_is_named_from_the_volumes_directory() {
        let layout = Layout { root: "/srv/store".into(), sharer: None };
        let check = |layer: &str, expect: &str| {
            assert_eq!(layout.backing_name(Path::new(layer)), Path::new(expect));
        };
        check("/srv/store/images/a.qcow2", "../images/a.qcow2");
        check("/srv/store/volumes/a.raw", "../volumes/a.raw");
        check("/srv/other/images/a.qcow2", "/srv/other/images/a.qcow2");
        check("/srv/store2/images/a.qcow2", "/srv/store2/images/a.qcow2");
    }
}

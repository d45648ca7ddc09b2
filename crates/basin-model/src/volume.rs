//! Volumes: virtual disks in a datastore.

use serde::{Deserialize, Serialize};

use crate::ids::{DatastoreId, ImageId, VolumeId};
use crate::meta::Meta;
use crate::units::Bytes;

/// A virtual disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub id: VolumeId,
    pub meta: Meta,
    pub datastore: DatastoreId,
    pub format: VolumeFormat,
    /// The size that the guest sees; a multiple of [`Volume::SECTOR`].
    pub size: Bytes,
    pub source: VolumeSource,
    pub state: VolumeState,
}

impl Volume {
    pub const SECTOR: Bytes = Bytes(512);
}

/// The format on the datastore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeFormat {
    Raw,
    Qcow2,
}

/// What a new volume holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum VolumeSource {
    Blank,
    /// A copy of an image.
    Image {
        image: ImageId,
    },
    /// Reads fall through to the image, which therefore cannot be deleted. Always qcow2.
    LinkedImage {
        image: ImageId,
    },
    /// A copy of another volume, taken while no VM runs on it.
    Volume {
        volume: VolumeId,
    },
    /// Reads fall through to the other volume, which is read-only from then on. Always qcow2.
    LinkedVolume {
        volume: VolumeId,
    },
}

/// Where a volume is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    Creating,
    Ready,
    Deleting,
}

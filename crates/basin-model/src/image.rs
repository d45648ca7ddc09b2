//! Images: what volumes are cloned from and guests boot from. Never written once ready.

use serde::{Deserialize, Serialize};

use crate::ids::{DatastoreId, ImageId};
use crate::meta::Meta;
use crate::units::Bytes;
use crate::volume::VolumeFormat;

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    pub id: ImageId,
    pub meta: Meta,
    pub datastore: DatastoreId,
    pub kind: ImageKind,
    pub state: ImageState,
}

/// What an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageKind {
    Disk,
    /// An ISO 9660 file for a CD-ROM drive.
    Iso,
    /// A Linux kernel (bzImage or vmlinux).
    Kernel,
    Initrd,
}

/// Where an image is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum ImageState {
    Importing,
    Ready { content: ImageContent },
    Deleting,
}

/// What an import found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageContent {
    /// Raw or qcow2 as stored; raw for anything that is not a disk.
    pub format: VolumeFormat,
    /// The size that a guest sees.
    pub virtual_size: Bytes,
    /// The file's length in the datastore.
    pub file_size: Bytes,
    /// SHA-256 of the source as it was read, in hex.
    pub sha256: String,
}

/// Formats that an import reads. Stated or found out by qemu-img, except that
/// raw is never assumed of a file that looks like another format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceFormat {
    Raw,
    Qcow2,
    Vmdk,
    Vhdx,
    Vdi,
}

impl SourceFormat {
    /// qemu-img's name for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            SourceFormat::Raw => "raw",
            SourceFormat::Qcow2 => "qcow2",
            SourceFormat::Vmdk => "vmdk",
            SourceFormat::Vhdx => "vhdx",
            SourceFormat::Vdi => "vdi",
        }
    }
}

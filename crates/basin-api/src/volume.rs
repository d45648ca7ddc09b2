//! Volumes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::reference::{Labels, Meta, Reference};

/// A virtual disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    #[serde(flatten)]
    pub meta: Meta,
    pub datastore: Reference,
    pub format: VolumeFormat,
    pub size_bytes: u64,
    /// What it occupies; absent in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocated_bytes: Option<u64>,
    /// What reads fall through to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backing: Option<String>,
    pub state: VolumeState,
    /// The VM it is attached to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<Reference>,
}

/// The format on the datastore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeFormat {
    Raw,
    Qcow2,
}

/// Where a volume is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    Creating,
    Ready,
    Deleting,
}

/// What a new volume holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "from", deny_unknown_fields)]
pub enum VolumeSource {
    /// Zeroes.
    Blank { size_bytes: u64 },
    /// An image's content; as large as the image unless a larger size is given.
    Image {
        image: String,
        #[serde(default)]
        clone: CloneKind,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size_bytes: Option<u64>,
    },
    /// Another volume's content, taken while no VM runs on it.
    Volume {
        volume: String,
        #[serde(default)]
        clone: CloneKind,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size_bytes: Option<u64>,
    },
}

/// How content is cloned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CloneKind {
    /// At once and small: reads fall through to the source, which has to stay.
    #[default]
    Linked,
    /// A copy that stands alone.
    Full,
}

/// A volume to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeCreate {
    pub name: String,
    #[serde(default)]
    pub description: String,
    #[serde(default)]
    pub labels: Labels,
    pub source: VolumeSource,
    /// Raw for blank volumes and full clones, qcow2 for linked ones, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<VolumeFormat>,
    /// That of the source, else `default`, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datastore: Option<String>,
}

/// A new size for a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeGrow {
    /// Larger than now, a multiple of 512.
    pub size_bytes: u64,
}

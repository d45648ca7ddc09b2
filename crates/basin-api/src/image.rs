//! Images, and uploads that become images.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::reference::{Labels, Meta, Reference};

/// Something volumes are cloned from or guests boot from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    #[serde(flatten)]
    pub meta: Meta,
    pub datastore: Reference,
    pub kind: ImageKind,
    pub state: ImageState,
    /// Absent until it is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<ImageContent>,
}

/// What an import found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageContent {
    /// As stored: `raw` or `qcow2`.
    pub format: String,
    pub virtual_size_bytes: u64,
    pub file_size_bytes: u64,
    /// Of the source, as it was read.
    pub sha256: String,
}

/// What an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageKind {
    #[default]
    Disk,
    Iso,
    Kernel,
    Initrd,
}

/// Where an image is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageState {
    Importing,
    Ready,
    Deleting,
}

/// Formats that can be imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SourceFormat {
    Raw,
    Qcow2,
    Vmdk,
    Vhdx,
    Vdi,
}

/// Where an image's bytes come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "from", deny_unknown_fields)]
pub enum ImageSource {
    /// A file on the server.
    Path { path: String },
    /// `http://` or `https://`.
    Url { url: String },
    /// What `POST /v1/uploads` returned.
    Upload { upload: String },
}

/// An image to import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageCreate {
    pub name: String,
    #[serde(default)]
    pub description: String,
    #[serde(default)]
    pub labels: Labels,
    #[serde(default)]
    pub kind: ImageKind,
    pub source: ImageSource,
    /// Found out from the content when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<SourceFormat>,
    /// SHA-256 in hex that the source must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// `default` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datastore: Option<String>,
}

/// Bytes that wait to be imported; gone after a day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Upload {
    pub id: String,
    pub size_bytes: u64,
}

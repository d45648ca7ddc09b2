//! The seam between Basin and a place that holds volumes and images.

use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use basin_model::datastore::Capacity;
use basin_model::image::{ImageContent, ImageKind, SourceFormat};
use basin_model::volume::VolumeFormat;
use basin_model::{Bytes, ImageId, VolumeId};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncRead;
use tokio_util::sync::CancellationToken;

/// Told how far a long operation is: bytes done, and bytes in all where known.
pub type Progress = Arc<dyn Fn(Bytes, Option<Bytes>) + Send + Sync>;

/// A file of a volume or image; top of the chain first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerFile {
    pub path: PathBuf,
    pub format: VolumeFormat,
}

/// Names bytes that were uploaded and wait to be imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UploadId(pub uuid::Uuid);

/// What one server writes into a shared datastore for another to see: made anew
/// each time, so no copy of the directory has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Proof(pub uuid::Uuid);

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An image's file, read from somewhere in it to its end.
pub struct ImageBytes {
    /// Of the whole file.
    pub size: Bytes,
    /// SHA-256 of the whole file as it is stored, in hex.
    pub sha256: String,
    pub bytes: Pin<Box<dyn AsyncRead + Send>>,
}

/// Where an image's bytes come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "from")]
pub enum ImportSource {
    /// A file on the server, read as root: only administrators may name one.
    Path {
        path: PathBuf,
    },
    /// `http` or `https`.
    Url {
        url: String,
    },
    Upload {
        upload: UploadId,
    },
}

/// An image to import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportRequest {
    pub image: ImageId,
    pub kind: ImageKind,
    pub source: ImportSource,
    /// Found out from the content when absent.
    pub format: Option<SourceFormat>,
    /// SHA-256 that the source must have, in hex.
    pub sha256: Option<String>,
}

/// A volume to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVolume {
    pub volume: VolumeId,
    pub format: VolumeFormat,
    /// At least the content's size.
    pub size: Bytes,
    pub content: VolumeContent,
}

/// What a new volume holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeContent {
    Blank,
    /// All bytes of this chain are copied.
    Copy(Vec<LayerFile>),
    /// Reads fall through to this chain.
    Linked(Vec<LayerFile>),
}

/// Why a datastore did not do as asked. Written for the operator.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("not enough space in {place}: {needed} needed, {free} free")]
    Full { place: String, needed: Bytes, free: Bytes },
    #[error("{0} does not exist")]
    NotFound(String),
    /// The bytes are not what they should be.
    #[error("{what} cannot be used: {why}")]
    Corrupt { what: String, why: String },
    #[error("checksum of {what} is wrong: expected {expected}, found {found}")]
    Checksum { what: String, expected: String, found: String },
    #[error("{0}")]
    Invalid(String),
    #[error("cannot fetch {url}: {why}")]
    Fetch { url: String, why: String },
    #[error("cancelled")]
    Cancelled,
    /// The directory is not what was marked as the datastore once.
    #[error(
        "{place} is not the datastore: it has no .basin-datastore in it; its file system is probably not mounted"
    )]
    NotMounted { place: String },
    /// Two servers do not have the same storage there, or no locks in common.
    #[error("{place} is not one storage on both servers: {why}")]
    Unshared { place: String, why: String },
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
}

/// A place that holds volumes and images.
#[async_trait]
pub trait Datastore: Send + Sync + 'static {
    async fn capacity(&self) -> Result<Capacity, StorageError>;

    /// All or nothing: after an error or a crash, no part of the image is to be
    /// seen, and the next try starts anew. An image that is there already is
    /// returned as it is. qcow2 stays qcow2 (its backing file refused); other
    /// formats are converted to qcow2; kernels, initrds and ISOs are kept as they are.
    async fn import(
        &self,
        request: &ImportRequest,
        progress: Progress,
        cancel: CancellationToken,
    ) -> Result<ImageContent, StorageError>;

    /// Takes in the bytes of an upload; all or nothing.
    async fn receive(
        &self,
        upload: UploadId,
        bytes: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Result<Bytes, StorageError>;

    async fn discard_upload(&self, upload: UploadId) -> Result<(), StorageError>;

    /// The image's file.
    fn image(&self, image: ImageId, format: VolumeFormat) -> LayerFile;

    /// The image's file from `offset` on, for another server to keep a copy of.
    async fn read_image(&self, image: ImageId, offset: Bytes) -> Result<ImageBytes, StorageError>;

    async fn delete_image(&self, image: ImageId) -> Result<(), StorageError>;

    /// All or nothing, as [`Datastore::import`].
    async fn create(
        &self,
        volume: &NewVolume,
        progress: Progress,
        cancel: CancellationToken,
    ) -> Result<(), StorageError>;

    /// The volume's own file (not its backing chain, which the caller knows).
    fn volume(&self, volume: VolumeId, format: VolumeFormat) -> LayerFile;

    /// Grows the volume; shrinking is refused. Nothing else may have it open.
    async fn grow(
        &self,
        volume: VolumeId,
        format: VolumeFormat,
        size: Bytes,
    ) -> Result<(), StorageError>;

    /// Idempotent.
    async fn delete(&self, volume: VolumeId) -> Result<(), StorageError>;

    /// What the volume occupies.
    async fn allocated(
        &self,
        volume: VolumeId,
        format: VolumeFormat,
    ) -> Result<Bytes, StorageError>;
}

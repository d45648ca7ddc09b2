//! Datastores: where volumes and images are, and how they come to be.
//!
//! [`Datastore`] is the seam; `dir` keeps them in a directory. Every operation is
//! keyed by id and idempotent, so that a workflow may repeat it after a crash.

mod datastore;

pub use datastore::{
    Datastore, ImportRequest, ImportSource, LayerFile, NewVolume, Progress, StorageError, UploadId,
    VolumeContent,
};

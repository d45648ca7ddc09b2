//! Datastores: where volumes and images are, and how they come to be.
//!
//! [`Datastore`] is the seam; [`dir`] keeps them in a directory. Every operation is
//! keyed by id and idempotent, so that a workflow may repeat it after a crash.

mod datastore;
pub mod dir;
mod headers;
mod judge;
mod probe;
mod qemu_img;
mod sandbox;
pub mod seed;

pub use datastore::{
    Datastore, ImageBytes, ImportRequest, ImportSource, LayerFile, NewVolume, Progress, Proof,
    StorageError, UploadId, VolumeContent,
};
pub use dir::{DirDatastore, Opening, STORAGE_GID};
pub use seed::{SeedInput, build_seed, check_cloud_init};

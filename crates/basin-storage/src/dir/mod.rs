//! A datastore in a directory of a mounted file system.
//!
//! Nothing is written where it is to be found: a file grows in `incoming/` and is
//! renamed when it is whole and on disk. Whoever dies in between leaves a
//! temporary, which the next [`DirDatastore::open`] sweeps away.

mod copy;
mod fetch;
mod images;
mod import;
mod layout;
mod locks;
mod open;
mod source;
mod space;
mod sparse;
mod stage;
mod unpack;
mod volumes;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use basin_model::datastore::Capacity;
use basin_model::image::ImageContent;
use basin_model::volume::VolumeFormat;
use basin_model::{Bytes, DatastoreId, ImageId, VolumeId};
use tokio::io::AsyncRead;
use tokio_util::sync::CancellationToken;

use crate::datastore::{
    Datastore, ImportRequest, LayerFile, NewVolume, Progress, StorageError, UploadId,
};
pub use fetch::Patience;
use layout::Layout;
use locks::Locks;
use space::Space;
pub use stage::STORAGE_GID;

/// See the module.
pub struct DirDatastore {
    inner: Arc<Inner>,
}

/// Shared with the operations under way, which keep the lock with it.
struct Inner {
    layout: Layout,
    space: Arc<Space>,
    locks: Locks,
    patience: Patience,
    _lock: open::Lock,
}

impl DirDatastore {
    /// Takes the directory into use; makes what is missing in it. Blocks, briefly.
    pub fn open(
        id: DatastoreId,
        path: impl AsRef<Path>,
        quota: Option<Bytes>,
    ) -> Result<DirDatastore, StorageError> {
        DirDatastore::open_with(id, path, quota, Patience::default())
    }

    /// As [`DirDatastore::open`], with other limits for fetches.
    pub fn open_with(
        id: DatastoreId,
        path: impl AsRef<Path>,
        quota: Option<Bytes>,
        patience: Patience,
    ) -> Result<DirDatastore, StorageError> {
        let (layout, lock) = open::open(id, path.as_ref())?;
        let space = Space::new(layout.clone(), quota);
        let inner = Inner { layout, space, locks: Locks::default(), patience, _lock: lock };
        Ok(DirDatastore { inner: Arc::new(inner) })
    }

    /// Runs what blocks on a thread for that. When the caller goes away, the work
    /// is cancelled; `f` has the datastore for as long as it runs.
    async fn blocking<T: Send + 'static>(
        &self,
        cancel: &CancellationToken,
        f: impl FnOnce(&Inner, &CancellationToken) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let inner = self.inner.clone();
        let cancel = cancel.child_token();
        let abandoned = cancel.clone().drop_guard();
        let result = tokio::task::spawn_blocking(move || f(&inner, &cancel)).await;
        drop(abandoned);
        result.unwrap_or_else(|e| {
            Err(StorageError::Io { what: "an operation".into(), source: std::io::Error::other(e) })
        })
    }
}

/// Runs `feed` beside `work`, but no longer than that.
async fn while_fed<T>(work: impl Future<Output = T>, feed: impl Future<Output = ()>) -> T {
    let fed = async {
        feed.await;
        std::future::pending().await
    };
    tokio::select! {
        result = work => result,
        never = fed => never,
    }
}

#[async_trait]
impl Datastore for DirDatastore {
    async fn capacity(&self) -> Result<Capacity, StorageError> {
        self.blocking(&CancellationToken::new(), |inner, _| inner.space.capacity()).await
    }

    async fn import(
        &self,
        request: &ImportRequest,
        progress: Progress,
        cancel: CancellationToken,
    ) -> Result<ImageContent, StorageError> {
        let key = self.inner.locks.lock(request.image.uuid(), &cancel).await?;
        let (feed, from) = import::prepare(&self.inner, request).await?;
        let request = request.clone();
        let work = self.blocking(&cancel, move |inner, cancel| {
            let _key = key;
            import::import(inner, &request, from, &progress, cancel)
        });
        while_fed(work, feed.run(&cancel)).await
    }

    async fn receive(
        &self,
        upload: UploadId,
        bytes: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Result<Bytes, StorageError> {
        let cancel = CancellationToken::new();
        let key = self.inner.locks.lock(upload.0, &cancel).await?;
        let (feed, reader) = source::channel();
        let work = self.blocking(&cancel, move |inner, cancel| {
            let _key = key;
            images::receive(inner, upload, reader, cancel)
        });
        while_fed(work, source::pump(bytes, feed)).await
    }

    async fn discard_upload(&self, upload: UploadId) -> Result<(), StorageError> {
        let cancel = CancellationToken::new();
        let key = self.inner.locks.lock(upload.0, &cancel).await?;
        self.blocking(&cancel, move |inner, _| {
            let _key = key;
            images::discard_upload(inner, upload)
        })
        .await
    }

    fn image(&self, image: ImageId, format: VolumeFormat) -> LayerFile {
        LayerFile { path: self.inner.layout.image(image, format), format }
    }

    async fn delete_image(&self, image: ImageId) -> Result<(), StorageError> {
        let cancel = CancellationToken::new();
        let key = self.inner.locks.lock(image.uuid(), &cancel).await?;
        self.blocking(&cancel, move |inner, _| {
            let _key = key;
            images::delete(inner, image)
        })
        .await
    }

    async fn create(
        &self,
        volume: &NewVolume,
        progress: Progress,
        cancel: CancellationToken,
    ) -> Result<(), StorageError> {
        let key = self.inner.locks.lock(volume.volume.uuid(), &cancel).await?;
        let volume = volume.clone();
        self.blocking(&cancel, move |inner, cancel| {
            let _key = key;
            volumes::create(inner, &volume, &progress, cancel)
        })
        .await
    }

    fn volume(&self, volume: VolumeId, format: VolumeFormat) -> LayerFile {
        LayerFile { path: self.inner.layout.volume(volume, format), format }
    }

    async fn grow(
        &self,
        volume: VolumeId,
        format: VolumeFormat,
        size: Bytes,
    ) -> Result<(), StorageError> {
        let cancel = CancellationToken::new();
        let key = self.inner.locks.lock(volume.uuid(), &cancel).await?;
        self.blocking(&cancel, move |inner, cancel| {
            let _key = key;
            volumes::grow(inner, volume, format, size, cancel)
        })
        .await
    }

    async fn delete(&self, volume: VolumeId) -> Result<(), StorageError> {
        let cancel = CancellationToken::new();
        let key = self.inner.locks.lock(volume.uuid(), &cancel).await?;
        self.blocking(&cancel, move |inner, _| {
            let _key = key;
            volumes::delete(inner, volume)
        })
        .await
    }

    async fn allocated(
        &self,
        volume: VolumeId,
        format: VolumeFormat,
    ) -> Result<Bytes, StorageError> {
        self.blocking(&CancellationToken::new(), move |inner, _| {
            volumes::allocated(inner, volume, format)
        })
        .await
    }
}

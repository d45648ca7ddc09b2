//! A datastore in a directory of a mounted file system.
//!
//! Nothing is written where it is to be found: a file grows in `incoming/` and is
//! renamed when it is whole and on disk. Whoever dies in between leaves a
//! temporary, which the next [`DirDatastore::open`] sweeps away.
//!
//! A directory is made a datastore once ([`mark`]). One daemon has it for itself, or
//! several share it ([`servers`]), after [`proof`] that it is the same storage.

mod copy;
mod fetch;
mod images;
mod import;
mod layout;
mod locks;
mod mark;
mod ofd;
mod open;
mod proof;
mod serve;
mod servers;
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
use basin_model::{Bytes, DatastoreId, HostId, ImageId, VolumeId};
use tokio::io::AsyncRead;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::datastore::{
    Datastore, ImageBytes, ImportRequest, LayerFile, NewVolume, Progress, Proof, StorageError,
    UploadId,
};
pub use fetch::Patience;
use layout::Layout;
use locks::Locks;
pub use open::Opening;
use open::Tenure;
use servers::{Servers, Turn};
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
    tenure: Tenure,
}

impl Inner {
    /// A file system that went away meanwhile must not look like an empty one.
    fn check_mounted(&self) -> Result<(), StorageError> {
        match self.layout.marker().symlink_metadata() {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Err(mark::not_mounted(&self.layout.root))
            }
            Err(source) => {
                let what = format!("looking at the datastore at {}", self.layout.root.display());
                Err(StorageError::Io { what, source })
            }
        }
    }

    /// Waits until no other server works on `id`.
    fn turn(&self, id: Uuid, cancel: &CancellationToken) -> Result<Option<Turn>, StorageError> {
        match &self.tenure {
            Tenure::Alone(_) => Ok(None),
            Tenure::Among(servers) => servers.turn(id, cancel).map(Some),
        }
    }

    fn servers(&self) -> Result<&Servers, StorageError> {
        match &self.tenure {
            Tenure::Among(servers) => Ok(servers),
            Tenure::Alone(_) => Err(StorageError::Invalid(format!(
                "the datastore at {} is not shared",
                self.layout.root.display()
            ))),
        }
    }
}

impl DirDatastore {
    /// Makes a directory a datastore, once. Idempotent. Blocks, briefly.
    pub fn make(id: DatastoreId, path: impl AsRef<Path>) -> Result<(), StorageError> {
        mark::make(id, path.as_ref())
    }

    /// Takes the marks off a datastore's directory that holds nothing. Idempotent.
    pub fn unmake(id: DatastoreId, path: impl AsRef<Path>) -> Result<(), StorageError> {
        mark::unmake(id, path.as_ref())
    }

    /// Takes the directory into use, alone; it was made before. Blocks, briefly.
    pub fn open(
        id: DatastoreId,
        path: impl AsRef<Path>,
        quota: Option<Bytes>,
    ) -> Result<DirDatastore, StorageError> {
        let (path, patience) = (path.as_ref().to_owned(), Patience::default());
        DirDatastore::open_with(&Opening { id, path, quota, sharer: None, patience })
    }

    /// As [`DirDatastore::open`], in every way there is.
    pub fn open_with(opening: &Opening) -> Result<DirDatastore, StorageError> {
        let (layout, tenure) = open::open(opening)?;
        let servers = match &tenure {
            Tenure::Alone(_) => None,
            Tenure::Among(servers) => Some(servers.clone()),
        };
        let space = Space::new(layout.clone(), opening.quota, servers);
        let patience = opening.patience;
        let inner = Inner { layout, space, locks: Locks::default(), patience, tenure };
        Ok(DirDatastore { inner: Arc::new(inner) })
    }

    /// Whether the directory is still there.
    pub async fn check(&self) -> Result<(), StorageError> {
        self.blocking(&CancellationToken::new(), |_, _| Ok(())).await
    }

    /// Writes something new into the shared datastore, for another server to see.
    pub async fn prove(&self) -> Result<Proof, StorageError> {
        self.blocking(&CancellationToken::new(), |inner, _| inner.servers()?.prove()).await
    }

    /// Looks for what another server just wrote; answers in the directory, and with
    /// what it wrote there.
    pub async fn witness(&self, from: HostId, proof: Proof) -> Result<Proof, StorageError> {
        let cancel = CancellationToken::new();
        self.blocking(&cancel, move |inner, cancel| inner.servers()?.witness(from, proof, cancel))
            .await
    }

    /// Looks for the answer that another server gave to a proof of this one.
    pub async fn confirm(
        &self,
        by: HostId,
        proof: Proof,
        answer: Proof,
    ) -> Result<(), StorageError> {
        let cancel = CancellationToken::new();
        self.blocking(&cancel, move |inner, cancel| {
            inner.servers()?.confirm(by, proof, answer, cancel)
        })
        .await
    }

    /// One at a time on `id`, here and on every server.
    async fn alone<T: Send + 'static>(
        &self,
        id: Uuid,
        f: impl FnOnce(&Inner, &CancellationToken) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let cancel = CancellationToken::new();
        let key = self.inner.locks.lock(id, &cancel).await?;
        self.blocking(&cancel, move |inner, cancel| {
            let _key = key;
            let _turn = inner.turn(id, cancel)?;
            f(inner, cancel)
        })
        .await
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
        let result = tokio::task::spawn_blocking(move || {
            inner.check_mounted()?;
            f(&inner, &cancel)
        })
        .await;
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
        let id = request.image.uuid();
        let key = self.inner.locks.lock(id, &cancel).await?;
        // Done before, perhaps by another server: the source may be gone since.
        if let Some(content) = images::find(&self.inner, request.image)? {
            return Ok(content);
        }
        let (feed, from) = import::prepare(&self.inner, request).await?;
        let request = request.clone();
        let work = self.blocking(&cancel, move |inner, cancel| {
            let _key = key;
            let _turn = inner.turn(id, cancel)?;
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
            let _turn = inner.turn(upload.0, cancel)?;
            images::receive(inner, upload, reader, cancel)
        });
        while_fed(work, source::pump(bytes, feed)).await
    }

    async fn discard_upload(&self, upload: UploadId) -> Result<(), StorageError> {
        self.alone(upload.0, move |inner, _| images::discard_upload(inner, upload)).await
    }

    fn image(&self, image: ImageId, format: VolumeFormat) -> LayerFile {
        LayerFile { path: self.inner.layout.image(image, format), format }
    }

    async fn read_image(&self, image: ImageId, offset: Bytes) -> Result<ImageBytes, StorageError> {
        self.alone(image.uuid(), move |inner, cancel| serve::read(inner, image, offset, cancel))
            .await
    }

    async fn delete_image(&self, image: ImageId) -> Result<(), StorageError> {
        self.alone(image.uuid(), move |inner, _| images::delete(inner, image)).await
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
            let _turn = inner.turn(volume.volume.uuid(), cancel)?;
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
        self.alone(volume.uuid(), move |inner, cancel| {
            volumes::grow(inner, volume, format, size, cancel)
        })
        .await
    }

    async fn delete(&self, volume: VolumeId) -> Result<(), StorageError> {
        self.alone(volume.uuid(), move |inner, _| volumes::delete(inner, volume)).await
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

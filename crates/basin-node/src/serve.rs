//! What the controller asks of a server's storage, and of VMs' consoles and figures.

use std::net::SocketAddr;

use async_trait::async_trait;
use basin_model::datastore::{Capacity, Datastore, DatastoreKind, DatastoreState};
use basin_model::host::HostStatus;
use basin_model::image::{ImageContent, ImageState};
use basin_model::volume::{Volume, VolumeFormat, VolumeSource};
use basin_model::{Bytes, DatastoreId, HostId, ImageId, TaskId, VmId};
use basin_qemu::Hardware;
use basin_qemu::migrate::MigrationSupport;
use basin_storage::{
    DirDatastore, ImageBytes, ImportRequest, LayerFile, NewVolume, Progress, Proof, StorageError,
    UploadId, VolumeContent,
};
use ipnet::Ipv4Net;
use tokio::io::AsyncRead;
use tokio_util::sync::CancellationToken;

use crate::api::{Chain, ConsoleLink, NodeApi, NodeError, NodeUsage};
use crate::console;
use crate::migration::types::{Aborted, Begin, Prepare, Prepared, Report};
use crate::node::LocalNode;
use crate::problem::{node_error, problem};

type Answer<T> = Result<T, NodeError>;

impl LocalNode {
    fn place(&self, id: DatastoreId) -> Answer<std::sync::Arc<dyn basin_storage::Datastore>> {
        self.datastores.get(id).map_err(|e| node_error(&e))
    }

    /// The files that a new volume copies or falls through to, top first.
    async fn chain_files(&self, chain: &Chain, progress: &Progress) -> Answer<Vec<LayerFile>> {
        let mut files = Vec::new();
        for volume in &chain.volumes {
            files.push(self.place(volume.datastore)?.volume(volume.id, volume.format));
        }
        if let Some(image) = &chain.image {
            let ImageState::Ready { content } = &image.state else {
                let detail = format!("image {} is not ready", image.meta.name);
                return Err(problem("image-not-ready", detail, "wait for its import").into());
            };
            let file = self.parts.images.file(image, content.format, progress).await;
            files.push(file.map_err(|e| node_error(&e))?);
        }
        Ok(files)
    }
}

#[async_trait]
impl NodeApi for LocalNode {
    async fn status(&self) -> Answer<HostStatus> {
        Ok(self.status.borrow().clone())
    }

    async fn usage(&self) -> Answer<NodeUsage> {
        Ok(self.meter.read(&self.machines, &self.vms, &self.parts).await)
    }

    async fn open_datastore(&self, datastore: &Datastore) -> Answer<Capacity> {
        let opened = self.datastores.open(datastore).await;
        let capacity = match opened {
            Ok(place) => {
                self.datastores.check(datastore, &place).await;
                basin_storage::Datastore::capacity(&*place).await
            }
            Err(error) => Err(error),
        };
        if capacity.is_err() && datastore.state == DatastoreState::Preparing {
            // Its record says what became of it; this server has no part in it.
            self.datastores.close(datastore.id).await;
        }
        capacity.map_err(|e| node_error(&e))
    }

    async fn discard_datastore(&self, datastore: &Datastore) -> Answer<()> {
        self.datastores.close(datastore.id).await;
        let DatastoreKind::Dir { path } = datastore.kind.clone();
        let id = datastore.id;
        let done = tokio::task::spawn_blocking(move || DirDatastore::unmake(id, path)).await;
        let done = done.unwrap_or_else(|e| {
            let what = format!("discarding datastore {id}");
            Err(StorageError::Io { what, source: std::io::Error::other(e) })
        });
        done.map_err(|e| node_error(&e))
    }

    async fn witness_datastore(
        &self,
        datastore: DatastoreId,
        from: HostId,
        proof: Proof,
    ) -> Answer<Proof> {
        self.datastores.witness(datastore, from, proof).await
    }

    async fn close_datastore(&self, datastore: DatastoreId) -> Answer<()> {
        self.datastores.close(datastore).await;
        Ok(())
    }

    async fn capacity(&self, datastore: DatastoreId) -> Answer<Capacity> {
        self.place(datastore)?.capacity().await.map_err(|e| node_error(&e))
    }

    async fn check_subnet(&self, subnet: Ipv4Net) -> Answer<()> {
        self.parts.fabric.check(subnet).await.map_err(|e| node_error(&e))
    }

    async fn import_image(
        &self,
        datastore: DatastoreId,
        request: &ImportRequest,
        progress: Progress,
        cancel: CancellationToken,
    ) -> Answer<ImageContent> {
        let place = self.place(datastore)?;
        place.import(request, progress, cancel).await.map_err(|e| node_error(&e))
    }

    async fn receive_upload(
        &self,
        datastore: DatastoreId,
        upload: UploadId,
        bytes: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Answer<Bytes> {
        self.place(datastore)?.receive(upload, bytes).await.map_err(|e| node_error(&e))
    }

    async fn discard_upload(&self, datastore: DatastoreId, upload: UploadId) -> Answer<()> {
        self.place(datastore)?.discard_upload(upload).await.map_err(|e| node_error(&e))
    }

    async fn read_image(
        &self,
        datastore: DatastoreId,
        image: ImageId,
        offset: Bytes,
    ) -> Answer<ImageBytes> {
        self.place(datastore)?.read_image(image, offset).await.map_err(|e| node_error(&e))
    }

    async fn delete_image(&self, datastore: DatastoreId, image: ImageId) -> Answer<()> {
        self.place(datastore)?.delete_image(image).await.map_err(|e| node_error(&e))
    }

    async fn create_volume(
        &self,
        volume: &Volume,
        chain: &Chain,
        progress: Progress,
        cancel: CancellationToken,
    ) -> Answer<()> {
        // An image of another server may have to be fetched first.
        let layers = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(node_error(&StorageError::Cancelled)),
            layers = self.chain_files(chain, &progress) => layers?,
        };
        let content = match volume.source {
            VolumeSource::Blank => VolumeContent::Blank,
            VolumeSource::Image { .. } | VolumeSource::Volume { .. } => VolumeContent::Copy(layers),
            VolumeSource::LinkedImage { .. } | VolumeSource::LinkedVolume { .. } => {
                VolumeContent::Linked(layers)
            }
        };
        let (id, format, size) = (volume.id, volume.format, volume.size);
        let new = NewVolume { volume: id, format, size, content };
        let place = self.place(volume.datastore)?;
        place.create(&new, progress, cancel).await.map_err(|e| node_error(&e))
    }

    async fn grow_volume(&self, volume: &Volume, size: Bytes) -> Answer<()> {
        // A raw file may grow under a guest; blockd then tells the guest.
        let served = self.parts.disks.list().await.map_err(|e| node_error(&e))?;
        let served = served.iter().any(|s| s.export.volume == volume.id);
        if served && volume.format == VolumeFormat::Qcow2 {
            let detail = format!("volume {} is in use by a running VM", volume.meta.name);
            return Err(problem("volume-in-use", detail, "stop the VM first").into());
        }
        let place = self.place(volume.datastore)?;
        place.grow(volume.id, volume.format, size).await.map_err(|e| node_error(&e))?;
        if served {
            self.parts.disks.resize(volume.id, size).await.map_err(|e| node_error(&e))?;
        }
        Ok(())
    }

    async fn delete_volume(&self, volume: &Volume) -> Answer<()> {
        let served = self.parts.disks.list().await.map_err(|e| node_error(&e))?;
        if served.iter().any(|s| s.export.volume == volume.id) {
            let detail = format!("volume {} is in use by a VM", volume.meta.name);
            return Err(problem("volume-in-use", detail, "stop the VM first").into());
        }
        self.place(volume.datastore)?.delete(volume.id).await.map_err(|e| node_error(&e))
    }

    async fn allocated(&self, volume: &Volume) -> Answer<Bytes> {
        let place = self.place(volume.datastore)?;
        place.allocated(volume.id, volume.format).await.map_err(|e| node_error(&e))
    }

    async fn forget_vm(&self, vm: VmId) -> Answer<()> {
        if self.machines.get(vm).is_some() || self.parts.present(vm) {
            let detail = format!("VM {vm} still runs here, or is being stopped");
            return Err(problem("vm-running", detail, "wait until it has stopped").into());
        }
        self.parts.forget(vm).await.map_err(|e| node_error(&e))
    }

    async fn migration_support(&self) -> Answer<MigrationSupport> {
        let engine = self.parts.engine.migration_support().await.map_err(|e| node_error(&e))?;
        Ok(MigrationSupport { disks_by_postcopy: self.parts.disks.postcopy(), ..engine })
    }

    async fn guest_hardware(&self, vm: VmId) -> Answer<Hardware> {
        self.migrations.hardware(vm).await
    }

    async fn migrate_prepare(&self, prepare: &Prepare) -> Answer<Prepared> {
        self.migrations.prepare(prepare).await
    }

    async fn migrate_begin(&self, begin: &Begin) -> Answer<()> {
        self.migrations.begin(begin).await
    }

    async fn migrate_report(&self, vm: VmId, task: TaskId) -> Answer<Report> {
        self.migrations.report(vm, task).await
    }

    async fn migrate_cancel(&self, vm: VmId, task: TaskId) -> Answer<()> {
        self.migrations.cancel(vm, task).await
    }

    async fn migrate_abort(&self, vm: VmId, task: TaskId) -> Answer<Aborted> {
        self.migrations.abort(vm, task).await
    }

    async fn migrate_listen_again(&self, vm: VmId, task: TaskId) -> Answer<SocketAddr> {
        self.migrations.listen_again(vm, task).await
    }

    async fn migrate_reconnect(&self, vm: VmId, task: TaskId, to: SocketAddr) -> Answer<()> {
        self.migrations.reconnect(vm, task, to).await
    }

    async fn console(&self, vm: VmId) -> Answer<ConsoleLink> {
        let Some(machine) = self.machines.get(vm) else {
            let detail = format!("VM {vm} does not run, so it has no console");
            return Err(problem("vm-not-running", detail, "start it first").into());
        };
        self.consoles.link(vm, &*machine).await.map_err(|e| node_error(&e))
    }

    async fn console_log(&self, vm: VmId, bytes: usize) -> Answer<Vec<u8>> {
        let path = match self.machines.get(vm) {
            Some(machine) => machine.console_log(),
            None => self.parts.state_dir.join("vms").join(vm.to_string()).join("console.log"),
        };
        let read = tokio::task::spawn_blocking(move || console::log_end(&path, bytes)).await;
        read.map_err(std::io::Error::other).flatten().map_err(|e| {
            let detail = format!("cannot read the console's log of VM {vm}: {e}");
            problem("file-refused", detail, "look at the state directory's file system").into()
        })
    }
}

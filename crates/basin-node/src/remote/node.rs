//! Another server's node.

use std::net::SocketAddr;

use async_trait::async_trait;
use basin_model::datastore::{Capacity, Datastore};
use basin_model::host::HostStatus;
use basin_model::image::ImageContent;
use basin_model::volume::Volume;
use basin_model::{Bytes, DatastoreId, HostId, ImageId, TaskId, VmId};
use basin_qemu::Hardware;
use basin_qemu::migrate::MigrationSupport;
use basin_storage::{ImageBytes, ImportRequest, Progress, Proof, UploadId};
use ipnet::Ipv4Net;
use tokio::io::AsyncRead;
use tokio_util::sync::CancellationToken;

use super::methods::{
    Allocated, CapacityOf, CheckSubnet, CloseDatastore, CreateVolume, DeleteImage, DeleteVolume,
    DiscardDatastore, DiscardUpload, ForgetVm, GrowVolume, ImportImage, OpenDatastore, Status,
    Usage, WitnessDatastore,
};
use super::moves::{
    GuestHardware, MigrateAbort, MigrateBegin, MigrateCancel, MigrateListenAgain, MigratePrepare,
    MigrateReconnect, MigrateReport, Support,
};
use super::peer::Peer;
use crate::api::{Chain, ConsoleLink, NodeApi, NodeError, NodeUsage};
use crate::migration::types::{Aborted, Begin, Prepare, Prepared, Report};

/// [`NodeApi`] of another server, over the network. Errors that are the network's
/// have the codes `host-unreachable` and `host-untrusted`.
#[derive(Clone)]
pub struct RemoteNode(Peer);

impl RemoteNode {
    pub fn new(peer: Peer) -> RemoteNode {
        RemoteNode(peer)
    }
}

type Answer<T> = Result<T, NodeError>;

#[async_trait]
impl NodeApi for RemoteNode {
    async fn status(&self) -> Answer<HostStatus> {
        self.0.call(Status {}).await
    }

    async fn usage(&self) -> Answer<NodeUsage> {
        self.0.call(Usage {}).await
    }

    async fn open_datastore(&self, datastore: &Datastore) -> Answer<Capacity> {
        self.0.call(OpenDatastore { datastore: datastore.clone() }).await
    }

    async fn close_datastore(&self, datastore: DatastoreId) -> Answer<()> {
        self.0.call(CloseDatastore { datastore }).await
    }

    async fn discard_datastore(&self, datastore: &Datastore) -> Answer<()> {
        self.0.call(DiscardDatastore { datastore: datastore.clone() }).await
    }

    async fn witness_datastore(
        &self,
        datastore: DatastoreId,
        from: HostId,
        proof: Proof,
    ) -> Answer<Proof> {
        self.0.call(WitnessDatastore { datastore, from, proof }).await
    }

    async fn capacity(&self, datastore: DatastoreId) -> Answer<Capacity> {
        self.0.call(CapacityOf { datastore }).await
    }

    async fn check_subnet(&self, subnet: Ipv4Net) -> Answer<()> {
        self.0.call(CheckSubnet { subnet }).await
    }

    async fn import_image(
        &self,
        datastore: DatastoreId,
        request: &ImportRequest,
        progress: Progress,
        cancel: CancellationToken,
    ) -> Answer<ImageContent> {
        let method = ImportImage { datastore, request: request.clone() };
        self.0.call_long(method, progress, cancel).await
    }

    async fn receive_upload(
        &self,
        datastore: DatastoreId,
        upload: UploadId,
        bytes: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Answer<Bytes> {
        self.0.upload(datastore, upload, bytes).await
    }

    async fn discard_upload(&self, datastore: DatastoreId, upload: UploadId) -> Answer<()> {
        self.0.call(DiscardUpload { datastore, upload }).await
    }

    async fn read_image(
        &self,
        datastore: DatastoreId,
        image: ImageId,
        offset: Bytes,
    ) -> Answer<ImageBytes> {
        self.0.read_image(datastore, image, offset).await
    }

    async fn delete_image(&self, datastore: DatastoreId, image: ImageId) -> Answer<()> {
        self.0.call(DeleteImage { datastore, image }).await
    }

    async fn create_volume(
        &self,
        volume: &Volume,
        chain: &Chain,
        progress: Progress,
        cancel: CancellationToken,
    ) -> Answer<()> {
        let method = CreateVolume { volume: volume.clone(), chain: chain.clone() };
        self.0.call_long(method, progress, cancel).await
    }

    async fn grow_volume(&self, volume: &Volume, size: Bytes) -> Answer<()> {
        self.0.call(GrowVolume { volume: volume.clone(), size }).await
    }

    async fn delete_volume(&self, volume: &Volume) -> Answer<()> {
        self.0.call(DeleteVolume { volume: volume.clone() }).await
    }

    async fn allocated(&self, volume: &Volume) -> Answer<Bytes> {
        self.0.call(Allocated { volume: volume.clone() }).await
    }

    async fn forget_vm(&self, vm: VmId) -> Answer<()> {
        self.0.call(ForgetVm { vm }).await
    }

    async fn migration_support(&self) -> Answer<MigrationSupport> {
        self.0.call(Support {}).await
    }

    async fn guest_hardware(&self, vm: VmId) -> Answer<Hardware> {
        self.0.call(GuestHardware { vm }).await
    }

    async fn migrate_prepare(&self, prepare: &Prepare) -> Answer<Prepared> {
        self.0.call(MigratePrepare(Box::new(prepare.clone()))).await
    }

    async fn migrate_begin(&self, begin: &Begin) -> Answer<()> {
        self.0.call(MigrateBegin(begin.clone())).await
    }

    async fn migrate_report(&self, vm: VmId, task: TaskId) -> Answer<Report> {
        self.0.call(MigrateReport { vm, task }).await
    }

    async fn migrate_cancel(&self, vm: VmId, task: TaskId) -> Answer<()> {
        self.0.call(MigrateCancel { vm, task }).await
    }

    async fn migrate_abort(&self, vm: VmId, task: TaskId) -> Answer<Aborted> {
        self.0.call(MigrateAbort { vm, task }).await
    }

    async fn migrate_listen_again(&self, vm: VmId, task: TaskId) -> Answer<SocketAddr> {
        self.0.call(MigrateListenAgain { vm, task }).await
    }

    async fn migrate_reconnect(&self, vm: VmId, task: TaskId, to: SocketAddr) -> Answer<()> {
        self.0.call(MigrateReconnect { vm, task, to }).await
    }

    async fn console(&self, vm: VmId) -> Answer<ConsoleLink> {
        self.0.console(vm).await
    }

    async fn console_log(&self, vm: VmId, bytes: usize) -> Answer<Vec<u8>> {
        self.0.console_log(vm, bytes).await
    }
}

//! What the controller asks of a server. Idempotent, so that workflows may repeat
//! it; in the process for the own server, over HTTPS (`remote`) for the others.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use basin_model::datastore::{Capacity, Datastore};
use basin_model::host::HostStatus;
use basin_model::image::{Image, ImageContent};
use basin_model::volume::Volume;
use basin_model::{Bytes, DatastoreId, HostId, ImageId, NicId, TaskId, VmId, VolumeId};
use basin_qemu::migrate::MigrationSupport;
use basin_qemu::{BalloonStats, GuestInfo, Hardware};
use basin_storage::{ImageBytes, ImportRequest, Progress, Proof, UploadId};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::migration::types::{Aborted, Begin, Prepare, Prepared, Report};

/// Why a server did not do as asked: the code is for programs, the texts for people.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", .0.detail)]
pub struct NodeError(pub basin_model::task::Problem);

/// Fast-changing figures of a server; never in the store (DESIGN D4).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeUsage {
    pub host: HostUsage,
    pub vms: BTreeMap<VmId, VmUsage>,
}

/// Figures of the server itself.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HostUsage {
    pub memory_total: Bytes,
    pub memory_available: Bytes,
    /// All CPUs' busy time since boot.
    pub cpu_busy: Duration,
    /// Resident memory of the daemon.
    pub daemon_resident: Bytes,
    /// Resident memory of blockd, once it runs.
    pub blockd_resident: Option<Bytes>,
}

/// Figures of one VM. Counters since its QEMU process started.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct VmUsage {
    pub cpu_time: Duration,
    pub resident: Bytes,
    pub balloon: Option<BalloonStats>,
    pub guest: Option<GuestInfo>,
    pub disks: BTreeMap<VolumeId, DiskUsage>,
    pub nics: BTreeMap<NicId, NicUsage>,
}

/// Figures of one disk.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskUsage {
    pub reads: u64,
    pub read: Bytes,
    pub writes: u64,
    pub written: Bytes,
    /// Why requests wait, when they do.
    pub stalled: Option<String>,
}

/// Figures of one interface, from the guest's point of view.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NicUsage {
    pub received: Bytes,
    pub sent: Bytes,
}

/// A connection to a VM's serial console.
pub struct ConsoleLink {
    /// The end of what the console said before.
    pub history: Vec<u8>,
    /// What it says from then on; ends when the VM does.
    pub output: mpsc::Receiver<Vec<u8>>,
    pub input: ConsoleIn,
}

/// What is typed.
pub type ConsoleIn = mpsc::Sender<Vec<u8>>;

/// One server.
#[async_trait]
pub trait NodeApi: Send + Sync + 'static {
    async fn status(&self) -> Result<HostStatus, NodeError>;

    async fn usage(&self) -> Result<NodeUsage, NodeError>;

    /// Takes the datastore into use here. One that is `preparing` is made first;
    /// the directory of any other has to be it already.
    async fn open_datastore(&self, datastore: &Datastore) -> Result<Capacity, NodeError>;

    /// Forgets a datastore; what it holds stays.
    async fn close_datastore(&self, datastore: DatastoreId) -> Result<(), NodeError>;

    /// Forgets a datastore that is no more, and takes Basin's marks off its
    /// directory if nothing is in it.
    async fn discard_datastore(&self, datastore: &Datastore) -> Result<(), NodeError>;

    /// Looks in a shared datastore for what the server `from` just wrote there, and
    /// answers in it: the answer is returned, for `from` to look for in turn.
    async fn witness_datastore(
        &self,
        datastore: DatastoreId,
        from: HostId,
        proof: Proof,
    ) -> Result<Proof, NodeError>;

    async fn capacity(&self, datastore: DatastoreId) -> Result<Capacity, NodeError>;

    /// Whether a network with this subnet could be made here.
    async fn check_subnet(&self, subnet: Ipv4Net) -> Result<(), NodeError>;

    async fn import_image(
        &self,
        datastore: DatastoreId,
        request: &ImportRequest,
        progress: Progress,
        cancel: CancellationToken,
    ) -> Result<ImageContent, NodeError>;

    async fn receive_upload(
        &self,
        datastore: DatastoreId,
        upload: UploadId,
        bytes: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Result<Bytes, NodeError>;

    async fn discard_upload(
        &self,
        datastore: DatastoreId,
        upload: UploadId,
    ) -> Result<(), NodeError>;

    /// The image's file from `offset` on. Images never change, so a server that was
    /// cut off goes on where it was.
    async fn read_image(
        &self,
        datastore: DatastoreId,
        image: ImageId,
        offset: Bytes,
    ) -> Result<ImageBytes, NodeError>;

    async fn delete_image(&self, datastore: DatastoreId, image: ImageId) -> Result<(), NodeError>;

    /// `chain` is what `volume.source` names, and what that falls through to in
    /// turn: volumes, then at most one image, top first.
    async fn create_volume(
        &self,
        volume: &Volume,
        chain: &Chain,
        progress: Progress,
        cancel: CancellationToken,
    ) -> Result<(), NodeError>;

    async fn grow_volume(&self, volume: &Volume, size: Bytes) -> Result<(), NodeError>;

    async fn delete_volume(&self, volume: &Volume) -> Result<(), NodeError>;

    /// What the volume occupies in its datastore.
    async fn allocated(&self, volume: &Volume) -> Result<Bytes, NodeError>;

    /// Removes what a deleted VM left: UEFI variables, console log, cloud-init seed.
    async fn forget_vm(&self, vm: VmId) -> Result<(), NodeError>;

    // Live migration. See `docs/live-migration.md` for who may run the guest when.

    /// What guests may come here, and how.
    async fn migration_support(&self) -> Result<MigrationSupport, NodeError>;

    /// What the guest of a VM that runs here has in its hands.
    async fn guest_hardware(&self, vm: VmId) -> Result<Hardware, NodeError>;

    /// Of the target: makes the machine that waits for the guest, with its disks and
    /// taps. Answers the same when asked again.
    async fn migrate_prepare(&self, prepare: &Prepare) -> Result<Prepared, NodeError>;

    /// Of the source: begins, or goes on with what an earlier daemon began.
    async fn migrate_begin(&self, begin: &Begin) -> Result<(), NodeError>;

    /// Of the source: how far it is.
    async fn migrate_report(&self, vm: VmId, task: TaskId) -> Result<Report, NodeError>;

    /// Of the source: gives up if the guest has not gone over. The report tells.
    async fn migrate_cancel(&self, vm: VmId, task: TaskId) -> Result<(), NodeError>;

    /// Of the target: gives up if the guest has not come. Whatever it answers stays true.
    async fn migrate_abort(&self, vm: VmId, task: TaskId) -> Result<Aborted, NodeError>;

    /// Of the target: waits for the source anew, whose connection broke in post-copy.
    async fn migrate_listen_again(&self, vm: VmId, task: TaskId) -> Result<SocketAddr, NodeError>;

    /// Of the source: connects anew.
    async fn migrate_reconnect(
        &self,
        vm: VmId,
        task: TaskId,
        to: SocketAddr,
    ) -> Result<(), NodeError>;

    async fn console(&self, vm: VmId) -> Result<ConsoleLink, NodeError>;

    /// The last `bytes` of what the console said.
    async fn console_log(&self, vm: VmId, bytes: usize) -> Result<Vec<u8>, NodeError>;
}

/// What a volume's reads fall through to, or what it is copied from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Chain {
    pub volumes: Vec<Volume>,
    pub image: Option<Image>,
}

//! Every method of [`NodeApi`] that is a question and an answer: its name on the
//! wire, its arguments, and what is called for it. Fields that are added later get
//! `#[serde(default)]`: servers may be one release apart.

use std::future::Future;

use basin_model::datastore::{Capacity, Datastore};
use basin_model::host::HostStatus;
use basin_model::image::ImageContent;
use basin_model::volume::Volume;
use basin_model::{Bytes, DatastoreId, HostId, ImageId, VmId};
use basin_storage::{ImportRequest, Progress, Proof, UploadId};
use ipnet::Ipv4Net;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::api::{Chain, NodeApi, NodeError, NodeUsage};

/// A method that is answered soon.
pub trait Method: Serialize + DeserializeOwned + Send + Sync + 'static {
    const NAME: &'static str;
    type Answer: Serialize + DeserializeOwned + Send + 'static;

    fn run(
        self,
        node: &dyn NodeApi,
    ) -> impl Future<Output = Result<Self::Answer, NodeError>> + Send;

    /// What nobody else may work on meanwhile.
    fn turn(&self) -> Option<Uuid> {
        None
    }
}

/// A method that takes long: it tells how far it is, and can be cancelled.
pub trait LongMethod: Serialize + DeserializeOwned + Send + Sync + 'static {
    const NAME: &'static str;
    type Answer: Serialize + DeserializeOwned + Send + 'static;

    fn run(
        self,
        node: &dyn NodeApi,
        progress: Progress,
        cancel: CancellationToken,
    ) -> impl Future<Output = Result<Self::Answer, NodeError>> + Send;

    fn turn(&self) -> Option<Uuid> {
        None
    }
}

#[derive(Serialize, Deserialize)]
pub struct Status {}

impl Method for Status {
    const NAME: &'static str = "status";
    type Answer = HostStatus;

    async fn run(self, node: &dyn NodeApi) -> Result<HostStatus, NodeError> {
        node.status().await
    }
}

#[derive(Serialize, Deserialize)]
pub struct Usage {}

impl Method for Usage {
    const NAME: &'static str = "usage";
    type Answer = NodeUsage;

    async fn run(self, node: &dyn NodeApi) -> Result<NodeUsage, NodeError> {
        node.usage().await
    }
}

#[derive(Serialize, Deserialize)]
pub struct OpenDatastore {
    pub datastore: Datastore,
}

impl Method for OpenDatastore {
    const NAME: &'static str = "open_datastore";
    type Answer = Capacity;

    async fn run(self, node: &dyn NodeApi) -> Result<Capacity, NodeError> {
        node.open_datastore(&self.datastore).await
    }

    fn turn(&self) -> Option<Uuid> {
        Some(self.datastore.id.uuid())
    }
}

#[derive(Serialize, Deserialize)]
pub struct CloseDatastore {
    pub datastore: DatastoreId,
}

impl Method for CloseDatastore {
    const NAME: &'static str = "close_datastore";
    type Answer = ();

    async fn run(self, node: &dyn NodeApi) -> Result<(), NodeError> {
        node.close_datastore(self.datastore).await
    }

    fn turn(&self) -> Option<Uuid> {
        Some(self.datastore.uuid())
    }
}

#[derive(Serialize, Deserialize)]
pub struct DiscardDatastore {
    pub datastore: Datastore,
}

impl Method for DiscardDatastore {
    const NAME: &'static str = "discard_datastore";
    type Answer = ();

    async fn run(self, node: &dyn NodeApi) -> Result<(), NodeError> {
        node.discard_datastore(&self.datastore).await
    }

    fn turn(&self) -> Option<Uuid> {
        Some(self.datastore.id.uuid())
    }
}

/// Takes no turn: the two servers that prove themselves to each other may both be
/// opening the datastore.
#[derive(Serialize, Deserialize)]
pub struct WitnessDatastore {
    pub datastore: DatastoreId,
    pub from: HostId,
    pub proof: Proof,
}

impl Method for WitnessDatastore {
    const NAME: &'static str = "witness_datastore";
    type Answer = Proof;

    async fn run(self, node: &dyn NodeApi) -> Result<Proof, NodeError> {
        node.witness_datastore(self.datastore, self.from, self.proof).await
    }
}

#[derive(Serialize, Deserialize)]
pub struct CapacityOf {
    pub datastore: DatastoreId,
}

impl Method for CapacityOf {
    const NAME: &'static str = "capacity";
    type Answer = Capacity;

    async fn run(self, node: &dyn NodeApi) -> Result<Capacity, NodeError> {
        node.capacity(self.datastore).await
    }
}

#[derive(Serialize, Deserialize)]
pub struct CheckSubnet {
    pub subnet: Ipv4Net,
}

impl Method for CheckSubnet {
    const NAME: &'static str = "check_subnet";
    type Answer = ();

    async fn run(self, node: &dyn NodeApi) -> Result<(), NodeError> {
        node.check_subnet(self.subnet).await
    }
}

#[derive(Serialize, Deserialize)]
pub struct ImportImage {
    pub datastore: DatastoreId,
    pub request: ImportRequest,
}

impl LongMethod for ImportImage {
    const NAME: &'static str = "import_image";
    type Answer = ImageContent;

    async fn run(
        self,
        node: &dyn NodeApi,
        progress: Progress,
        cancel: CancellationToken,
    ) -> Result<ImageContent, NodeError> {
        node.import_image(self.datastore, &self.request, progress, cancel).await
    }

    fn turn(&self) -> Option<Uuid> {
        Some(self.request.image.uuid())
    }
}

#[derive(Serialize, Deserialize)]
pub struct DiscardUpload {
    pub datastore: DatastoreId,
    pub upload: UploadId,
}

impl Method for DiscardUpload {
    const NAME: &'static str = "discard_upload";
    type Answer = ();

    async fn run(self, node: &dyn NodeApi) -> Result<(), NodeError> {
        node.discard_upload(self.datastore, self.upload).await
    }

    fn turn(&self) -> Option<Uuid> {
        Some(self.upload.0)
    }
}

#[derive(Serialize, Deserialize)]
pub struct DeleteImage {
    pub datastore: DatastoreId,
    pub image: ImageId,
}

impl Method for DeleteImage {
    const NAME: &'static str = "delete_image";
    type Answer = ();

    async fn run(self, node: &dyn NodeApi) -> Result<(), NodeError> {
        node.delete_image(self.datastore, self.image).await
    }

    fn turn(&self) -> Option<Uuid> {
        Some(self.image.uuid())
    }
}

#[derive(Serialize, Deserialize)]
pub struct CreateVolume {
    pub volume: Volume,
    pub chain: Chain,
}

impl LongMethod for CreateVolume {
    const NAME: &'static str = "create_volume";
    type Answer = ();

    async fn run(
        self,
        node: &dyn NodeApi,
        progress: Progress,
        cancel: CancellationToken,
    ) -> Result<(), NodeError> {
        node.create_volume(&self.volume, &self.chain, progress, cancel).await
    }

    fn turn(&self) -> Option<Uuid> {
        Some(self.volume.id.uuid())
    }
}

#[derive(Serialize, Deserialize)]
pub struct GrowVolume {
    pub volume: Volume,
    pub size: Bytes,
}

impl Method for GrowVolume {
    const NAME: &'static str = "grow_volume";
    type Answer = ();

    async fn run(self, node: &dyn NodeApi) -> Result<(), NodeError> {
        node.grow_volume(&self.volume, self.size).await
    }

    fn turn(&self) -> Option<Uuid> {
        Some(self.volume.id.uuid())
    }
}

#[derive(Serialize, Deserialize)]
pub struct DeleteVolume {
    pub volume: Volume,
}

impl Method for DeleteVolume {
    const NAME: &'static str = "delete_volume";
    type Answer = ();

    async fn run(self, node: &dyn NodeApi) -> Result<(), NodeError> {
        node.delete_volume(&self.volume).await
    }

    fn turn(&self) -> Option<Uuid> {
        Some(self.volume.id.uuid())
    }
}

#[derive(Serialize, Deserialize)]
pub struct Allocated {
    pub volume: Volume,
}

impl Method for Allocated {
    const NAME: &'static str = "allocated";
    type Answer = Bytes;

    async fn run(self, node: &dyn NodeApi) -> Result<Bytes, NodeError> {
        node.allocated(&self.volume).await
    }
}

#[derive(Serialize, Deserialize)]
pub struct ForgetVm {
    pub vm: VmId,
}

impl Method for ForgetVm {
    const NAME: &'static str = "forget_vm";
    type Answer = ();

    async fn run(self, node: &dyn NodeApi) -> Result<(), NodeError> {
        node.forget_vm(self.vm).await
    }

    fn turn(&self) -> Option<Uuid> {
        Some(self.vm.uuid())
    }
}

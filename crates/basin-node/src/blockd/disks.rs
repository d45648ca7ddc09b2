//! What the node asks of the blockd that it keeps running.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use basin_blockd::client::{Client, ClientError};
use basin_blockd::control::{Export, ExportState, Fabric, Grant, GrantState, Held, Mirror};
use basin_model::{Bytes, Generation, VolumeId};
use tokio::time::timeout;

use super::{ANSWERS_WITHIN, Supervisor};
use crate::disks::{DiskError, Disks};

#[async_trait]
impl Disks for Supervisor {
    async fn open(&self, export: &Export) -> Result<(), DiskError> {
        self.keep(export);
        let opened = self.ask_open(export).await;
        if opened.is_err() {
            self.state().wanted.remove(&export.volume);
        }
        opened
    }

    async fn close(&self, volume: VolumeId, generation: Generation) -> Result<(), DiskError> {
        self.state().wanted.remove(&volume);
        self.ask_beside(|client| Box::pin(client.close(volume, generation))).await?;
        self.replace_if_old_and_idle().await;
        Ok(())
    }

    async fn list(&self) -> Result<Vec<ExportState>, DiskError> {
        self.ask(|client| Box::pin(client.list())).await
    }

    async fn resize(&self, volume: VolumeId, size: Bytes) -> Result<(), DiskError> {
        self.ask(|client| Box::pin(client.resize(volume, size))).await
    }

    async fn hold(
        &self,
        volume: VolumeId,
        generation: Generation,
        held: Held,
    ) -> Result<(), DiskError> {
        self.ask_beside(|client| Box::pin(client.hold(volume, generation, held))).await?;
        if let Some(export) = self.state().wanted.get_mut(&volume) {
            export.held = held;
        }
        Ok(())
    }

    /// On a connection of its own: others are not to wait for it.
    async fn await_release(
        &self,
        volume: VolumeId,
        generation: Generation,
        mirrored: bool,
        limit: Duration,
    ) -> Result<(), DiskError> {
        let error =
            |error: ClientError| DiskError { code: error.code(), message: error.to_string() };
        let mut client = Client::connect(&self.0.dir).await.map_err(error)?;
        let released = client.await_release(volume, generation, mirrored, limit);
        match timeout(limit + ANSWERS_WITHIN, released).await {
            Ok(answer) => answer.map_err(error),
            Err(_) => {
                Err(DiskError { code: None, message: "blockd did not answer in time".into() })
            }
        }
    }

    async fn fabric(&self, fabric: Option<&Fabric>) -> Result<(), DiskError> {
        self.state().fabric = fabric.cloned();
        self.ask_fabric(fabric.cloned()).await
    }

    async fn grant(&self, grant: &Grant) -> Result<(), DiskError> {
        let grant = Arc::new(grant.clone());
        self.ask_beside(|client| {
            let grant = grant.clone();
            Box::pin(async move { client.grant(&grant).await })
        })
        .await
    }

    async fn revoke(&self, volume: VolumeId, generation: Generation) -> Result<(), DiskError> {
        self.ask_beside(|client| Box::pin(client.revoke(volume, generation))).await
    }

    async fn grants(&self) -> Result<Vec<GrantState>, DiskError> {
        self.ask(|client| Box::pin(client.grants())).await
    }

    async fn mirror(&self, mirror: &Mirror) -> Result<(), DiskError> {
        let mirror = Arc::new(mirror.clone());
        self.ask(|client| {
            let mirror = mirror.clone();
            Box::pin(async move { client.mirror(&mirror).await })
        })
        .await
    }

    async fn mirror_limit(&self, volume: VolumeId, limit: Option<Bytes>) -> Result<(), DiskError> {
        self.ask(|client| Box::pin(client.mirror_limit(volume, limit))).await
    }

    async fn stop_mirror(&self, volume: VolumeId, generation: Generation) -> Result<(), DiskError> {
        self.ask_beside(|client| Box::pin(client.stop_mirror(volume, generation))).await
    }

    fn keep(&self, export: &Export) {
        self.state().wanted.insert(export.volume, export.clone());
    }

    fn up(&self) -> bool {
        self.pid().is_some()
    }

    fn postcopy(&self) -> bool {
        self.state().running.as_ref().is_some_and(|hello| hello.postcopy)
    }

    fn pid(&self) -> Option<u32> {
        self.state().running.as_ref().map(|hello| hello.pid)
    }
}

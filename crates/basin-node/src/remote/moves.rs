//! The methods of live migration, on the wire. See `methods`.

use std::net::SocketAddr;

use basin_model::{TaskId, VmId};
use basin_qemu::Hardware;
use basin_qemu::migrate::MigrationSupport;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::methods::Method;
use crate::api::{NodeApi, NodeError};
use crate::migration::types::{Aborted, Begin, Prepare, Prepared, Report};

#[derive(Serialize, Deserialize)]
pub struct Support {}

impl Method for Support {
    const NAME: &'static str = "migration_support";
    type Answer = MigrationSupport;

    async fn run(self, node: &dyn NodeApi) -> Result<MigrationSupport, NodeError> {
        node.migration_support().await
    }
}

#[derive(Serialize, Deserialize)]
pub struct GuestHardware {
    pub vm: VmId,
}

impl Method for GuestHardware {
    const NAME: &'static str = "guest_hardware";
    type Answer = Hardware;

    async fn run(self, node: &dyn NodeApi) -> Result<Hardware, NodeError> {
        node.guest_hardware(self.vm).await
    }
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub struct MigratePrepare(pub Box<Prepare>);

impl Method for MigratePrepare {
    const NAME: &'static str = "migrate_prepare";
    type Answer = Prepared;

    async fn run(self, node: &dyn NodeApi) -> Result<Prepared, NodeError> {
        node.migrate_prepare(&self.0).await
    }

    fn turn(&self) -> Option<Uuid> {
        Some(self.0.vm.id.uuid())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub struct MigrateBegin(pub Begin);

impl Method for MigrateBegin {
    const NAME: &'static str = "migrate_begin";
    type Answer = ();

    async fn run(self, node: &dyn NodeApi) -> Result<(), NodeError> {
        node.migrate_begin(&self.0).await
    }

    fn turn(&self) -> Option<Uuid> {
        Some(self.0.vm.uuid())
    }
}

#[derive(Serialize, Deserialize)]
pub struct MigrateReport {
    pub vm: VmId,
    pub task: TaskId,
}

impl Method for MigrateReport {
    const NAME: &'static str = "migrate_report";
    type Answer = Report;

    async fn run(self, node: &dyn NodeApi) -> Result<Report, NodeError> {
        node.migrate_report(self.vm, self.task).await
    }
}

#[derive(Serialize, Deserialize)]
pub struct MigrateCancel {
    pub vm: VmId,
    pub task: TaskId,
}

impl Method for MigrateCancel {
    const NAME: &'static str = "migrate_cancel";
    type Answer = ();

    async fn run(self, node: &dyn NodeApi) -> Result<(), NodeError> {
        node.migrate_cancel(self.vm, self.task).await
    }
}

#[derive(Serialize, Deserialize)]
pub struct MigrateAbort {
    pub vm: VmId,
    pub task: TaskId,
}

impl Method for MigrateAbort {
    const NAME: &'static str = "migrate_abort";
    type Answer = Aborted;

    async fn run(self, node: &dyn NodeApi) -> Result<Aborted, NodeError> {
        node.migrate_abort(self.vm, self.task).await
    }

    fn turn(&self) -> Option<Uuid> {
        Some(self.vm.uuid())
    }
}

#[derive(Serialize, Deserialize)]
pub struct MigrateListenAgain {
    pub vm: VmId,
    pub task: TaskId,
}

impl Method for MigrateListenAgain {
    const NAME: &'static str = "migrate_listen_again";
    type Answer = SocketAddr;

    async fn run(self, node: &dyn NodeApi) -> Result<SocketAddr, NodeError> {
        node.migrate_listen_again(self.vm, self.task).await
    }

    fn turn(&self) -> Option<Uuid> {
        Some(self.vm.uuid())
    }
}

#[derive(Serialize, Deserialize)]
pub struct MigrateReconnect {
    pub vm: VmId,
    pub task: TaskId,
    pub to: SocketAddr,
}

impl Method for MigrateReconnect {
    const NAME: &'static str = "migrate_reconnect";
    type Answer = ();

    async fn run(self, node: &dyn NodeApi) -> Result<(), NodeError> {
        node.migrate_reconnect(self.vm, self.task, self.to).await
    }

    fn turn(&self) -> Option<Uuid> {
        Some(self.vm.uuid())
    }
}

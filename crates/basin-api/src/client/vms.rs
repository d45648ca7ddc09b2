//! What can be done with a VM only.

use bytes::Bytes;
use reqwest::Method;

use super::{Client, ClientError, Resource};
use crate::task::Task;
use crate::vm::{NewDisk, Shutdown, Vm, VmMigrate};

/// A change of a VM's state that needs no more words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmAction {
    Start,
    PowerOff,
    Reset,
    Pause,
    Resume,
}

impl VmAction {
    const fn path(self) -> &'static str {
        match self {
            VmAction::Start => "start",
            VmAction::PowerOff => "power-off",
            VmAction::Reset => "reset",
            VmAction::Pause => "pause",
            VmAction::Resume => "resume",
        }
    }
}

/// How to delete a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeleteVm {
    /// Also while it runs.
    pub force: bool,
    /// Its volumes stay.
    pub keep_disks: bool,
}

impl Client {
    pub async fn vm_action(&self, vm: &str, action: VmAction) -> Result<Task, ClientError> {
        self.json(self.request(Method::POST, &[Vm::PATH, vm, action.path()])?).await
    }

    pub async fn shutdown_vm(&self, vm: &str, how: &Shutdown) -> Result<Task, ClientError> {
        self.json(self.request(Method::POST, &[Vm::PATH, vm, "shutdown"])?.json(how)).await
    }

    /// Moves it to another server while it runs.
    pub async fn migrate_vm(&self, vm: &str, how: &VmMigrate) -> Result<Task, ClientError> {
        self.json(self.request(Method::POST, &[Vm::PATH, vm, "migrate"])?.json(how)).await
    }

    pub async fn delete_vm(&self, vm: &str, how: DeleteVm) -> Result<Task, ClientError> {
        let mut query = Vec::new();
        query.extend(how.force.then_some(("force", true)));
        query.extend(how.keep_disks.then_some(("keep_disks", true)));
        self.json(self.request(Method::DELETE, &[Vm::PATH, vm])?.query(&query)).await
    }

    pub async fn attach_disk(&self, vm: &str, disk: &NewDisk) -> Result<Task, ClientError> {
        self.json(self.request(Method::POST, &[Vm::PATH, vm, "disks"])?.json(disk)).await
    }

    pub async fn detach_disk(&self, vm: &str, volume: &str) -> Result<Vm, ClientError> {
        self.json(self.request(Method::DELETE, &[Vm::PATH, vm, "disks", volume])?).await
    }

    /// The end of what the serial console has shown, also while the VM is stopped.
    pub async fn console_log(&self, vm: &str, bytes: Option<u64>) -> Result<Bytes, ClientError> {
        let query: Vec<_> = bytes.map(|n| ("bytes", n)).into_iter().collect();
        let request = self.request(Method::GET, &[Vm::PATH, vm, "console", "log"])?;
        self.bytes(request.query(&query)).await
    }
}

//! Finds the machines that outlived a daemon.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use basin_model::VmId;
use basin_model::vm::QemuProcess;
use futures::future::join_all;
use tokio::sync::watch;

use super::Inner;
use super::files::doing;
use super::firmware;
use super::machine::{self, Hub, QemuMachine, Shared};
use super::migrate;
use super::process;
use super::qmp::Qmp;
use super::record::Record;
use crate::engine::{Adopted, EngineError};
use crate::hardware::Hardware;

/// How long to wait for the end of what is killed.
const KILL_LIMIT: Duration = Duration::from_secs(30);

pub(super) async fn adopt(inner: &Arc<Inner>) -> Result<Vec<Adopted>, EngineError> {
    let vms = doing(inner.cgroups.list(), || "list the machines' cgroups".to_owned())?;
    let adopted = join_all(vms.into_iter().map(|vm| adopt_one(inner, vm))).await;
    adopted.into_iter().filter_map(Result::transpose).collect()
}

/// `None` when nothing that can be controlled runs for `vm`; then nothing runs for it.
async fn adopt_one(inner: &Arc<Inner>, vm: VmId) -> Result<Option<Adopted>, EngineError> {
    let cgroup = inner.cgroups.machine(vm);
    let look = || doing(cgroup.procs(), || format!("look for processes of VM {vm}"));
    let uuid = vm.to_string();
    let mut candidate = None;
    for pid in look()? {
        let Ok(pidfd) = process::pidfd_open(pid) else { continue };
        // Still there after the pidfd was made: it refers to this very process.
        if candidate.is_none() && process::is_machine(pid, &uuid) && look()?.contains(&pid) {
            candidate = Some((pid, pidfd));
        } else {
            tracing::warn!(%vm, pid, "kills a process that is no machine");
            end(pidfd).await?;
        }
    }
    let Some((pid, pidfd)) = candidate else {
        machine::remove_remains(&inner.paths(vm), &cgroup);
        return Ok(None);
    };
    match connect(inner, vm, pid, &pidfd).await {
        Ok((record, shared, qmp)) => {
            inner.machines().known.insert(vm, Arc::downgrade(&shared));
            let machine = Arc::new(QemuMachine::new(shared, qmp));
            migrate::look_again(&machine, record.incoming.is_some()).await;
            Ok(Some(Adopted { vm, generation: record.spec.generation, machine }))
        }
        Err(why) => {
            tracing::warn!(%vm, pid, why, "kills a machine that cannot be controlled");
            end(pidfd).await?;
            machine::remove_remains(&inner.paths(vm), &cgroup);
            Ok(None)
        }
    }
}

async fn connect(
    inner: &Inner,
    vm: VmId,
    pid: u32,
    pidfd: &OwnedFd,
) -> Result<(Record, Arc<Shared>, Qmp), String> {
    let paths = inner.paths(vm);
    let record = Record::read(&paths.record()).map_err(|e| format!("its record: {e}"))?;
    if record.spec.vm != vm {
        return Err(format!("its record is of VM {}", record.spec.vm));
    }
    let hub = Hub::new(paths.migration());
    let told = hub.clone();
    let socket = paths.qmp();
    let qmp = Qmp::connect(&socket, inner.config.request_limit, move |event| {
        told.qemu_said(&event);
    });
    let qmp = qmp.await.map_err(|error| error.to_string())?;
    let pidfd = pidfd.try_clone().and_then(process::watch).map_err(|error| error.to_string())?;
    let hardware = match &record.hardware {
        Some(hardware) => hardware.clone(),
        None => {
            let version = qmp
                .version()
                .parse()
                .map_err(|e: basin_model::hardware::InvalidVersion| e.to_string())?;
            let flash = firmware::find(None).ok().and_then(|uefi| uefi.flash());
            let words = process::arguments(pid).map_err(|error| error.to_string())?;
            Hardware::of_process(&record.spec, &record.accelerator, version, flash, &words)
        }
    };
    let shared = Arc::new(Shared {
        vm,
        hardware,
        memory: record.spec.memory,
        uid: record.uid,
        cgroup: inner.cgroups.machine(vm),
        process: QemuProcess {
            pid,
            version: qmp.version().to_owned(),
            accelerator: record.accelerator.clone(),
            started_at: record.started_at,
        },
        pidfd,
        log_start: std::fs::metadata(paths.qemu_log()).map_or(0, |meta| meta.len()),
        paths,
        _images: Vec::new(),
        limit: inner.config.request_limit,
        hub,
        switch: tokio::sync::Mutex::default(),
        gone: watch::Sender::new(None),
    });
    Ok((record, shared, qmp))
}

/// Kills a process and waits for its end.
async fn end(pidfd: OwnedFd) -> Result<(), EngineError> {
    let killed = process::kill(&pidfd).and_then(|()| process::watch(pidfd));
    let pidfd = doing(killed, || "kill a left-over QEMU".to_owned())?;
    match tokio::time::timeout(KILL_LIMIT, pidfd.readable()).await {
        Ok(_) => {
            process::reap(pidfd.get_ref());
            Ok(())
        }
        Err(_) => {
            let why = "a left-over process does not die".to_owned();
            Err(EngineError::Refused { what: "end", why })
        }
    }
}

//! `/v1/vms`

use axum::Json;
use axum::extract::{Path, State};
use basin_api::Problem;
use basin_api::reference::List;
use basin_api::task::Task;
use basin_api::vm::{NewDisk, Shutdown, Vm, VmCreate, VmMigrate, VmPatch};
use serde::Deserialize;
use std::time::Duration;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Allow, Configure, Operate, View};
use super::convert::{self, labels};
use super::etag::{IfMatch, Tagged};
use super::extract::{Answer, Body, Pairs, Params};
use super::tasks::{Accepted, accepted};
use super::{ApiError, Context};

pub fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, patch, delete))
        .routes(routes!(start))
        .routes(routes!(shutdown))
        .routes(routes!(power_off))
        .routes(routes!(reset))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(migrate))
        .routes(routes!(add_disk))
        .routes(routes!(remove_disk))
}

/// All virtual machines, or those with certain labels (`?label=tier=gold`, repeatable).
#[utoipa::path(get, path = "/v1/vms", tag = "vms",
    params(("label" = Option<Vec<String>>, Query, description = "`KEY=VALUE`; all have to match")),
    responses((status = 200, body = List<Vm>), (status = "default", body = Problem)))]
async fn list(_: Allow<View>, State(context): State<Context>, query: Pairs) -> Answer<List<Vm>> {
    let wanted = labels::selector(query.only(&["label"])?)?;
    let snapshot = context.app.inventory().read();
    let vms = snapshot.vms.values().filter(|vm| labels::matches(&wanted, &vm.value.meta.labels));
    let items = vms.map(|vm| convert::vm::vm(vm, &snapshot)).collect();
    Ok(Json(List { items, revision: snapshot.revision.0 }))
}

/// Makes a virtual machine, and the volumes that are to be made for it.
#[utoipa::path(post, path = "/v1/vms", tag = "vms", request_body = VmCreate,
    responses((status = 202, body = Task), (status = "default", body = Problem)))]
async fn create(
    _: Allow<Configure>,
    State(context): State<Context>,
    Body(request): Body<VmCreate>,
) -> Accepted {
    accepted(&context, context.app.create_vm(&request).await?)
}

/// One virtual machine, with its figures of the moment.
#[utoipa::path(get, path = "/v1/vms/{vm}", tag = "vms",
    params(("vm" = String, Path, description = "name or id")),
    responses((status = 200, body = Vm), (status = "default", body = Problem)))]
async fn show(
    _: Allow<View>,
    State(context): State<Context>,
    Path(reference): Path<String>,
) -> Result<Tagged<Vm>, ApiError> {
    let (mut vm, id, host) = {
        let snapshot = context.app.inventory().read();
        let record = snapshot.vm(&reference)?;
        let host = record.value.placement.map(|p| p.host);
        (convert::vm::vm(record, &snapshot), record.value.id, host)
    };
    if let Some(host) = host
        && let Ok(usage) = context.app.nodes().usage(host).await
    {
        vm.status.usage = usage.vms.get(&id).map(convert::usage::vm);
    }
    let revision = vm.meta.revision;
    Ok(Tagged(vm, revision))
}

fn tagged(context: &Context, id: basin_model::VmId) -> Result<Tagged<Vm>, ApiError> {
    let snapshot = context.app.inventory().read();
    let record = snapshot.vm(&id.to_string())?;
    Ok(Tagged(convert::vm::vm(record, &snapshot), record.revision.0))
}

/// Changes a virtual machine. Hardware changes while it is stopped.
#[utoipa::path(patch, path = "/v1/vms/{vm}", tag = "vms", request_body = VmPatch,
    params(("vm" = String, Path, description = "name or id"),
           ("If-Match" = Option<String>, Header, description = "the ETag that was read")),
    responses((status = 200, body = Vm), (status = "default", body = Problem)))]
async fn patch(
    _: Allow<Configure>,
    State(context): State<Context>,
    Path(reference): Path<String>,
    IfMatch(expected): IfMatch,
    Body(patch): Body<VmPatch>,
) -> Result<Tagged<Vm>, ApiError> {
    let vm = context.app.patch_vm(&reference, &patch, expected).await?;
    tagged(&context, vm.id)
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct DeleteParams {
    /// Stop it first if it runs.
    #[serde(default)]
    force: bool,
    /// Keep the volumes that were made for it.
    #[serde(default)]
    keep_disks: bool,
}

/// Deletes a virtual machine with the volumes that were made for it.
#[utoipa::path(delete, path = "/v1/vms/{vm}", tag = "vms",
    params(("vm" = String, Path, description = "name or id"), DeleteParams,
           ("If-Match" = Option<String>, Header, description = "the ETag that was read")),
    responses((status = 202, body = Task), (status = "default", body = Problem)))]
async fn delete(
    _: Allow<Configure>,
    State(context): State<Context>,
    Path(reference): Path<String>,
    IfMatch(expected): IfMatch,
    Params(how): Params<DeleteParams>,
) -> Accepted {
    let task = context.app.delete_vm(&reference, how.force, how.keep_disks, expected).await?;
    accepted(&context, task)
}

/// Starts a virtual machine on a server with room for it.
#[utoipa::path(post, path = "/v1/vms/{vm}/start", tag = "vms",
    params(("vm" = String, Path, description = "name or id")),
    responses((status = 202, body = Task), (status = "default", body = Problem)))]
async fn start(
    _: Allow<Operate>,
    State(context): State<Context>,
    Path(reference): Path<String>,
) -> Accepted {
    accepted(&context, context.app.start_vm(&reference).await?)
}

/// Presses the power button, and pulls the plug if the guest has not gone in time.
#[utoipa::path(post, path = "/v1/vms/{vm}/shutdown", tag = "vms", request_body = Shutdown,
    params(("vm" = String, Path, description = "name or id")),
    responses((status = 202, body = Task), (status = "default", body = Problem)))]
async fn shutdown(
    _: Allow<Operate>,
    State(context): State<Context>,
    Path(reference): Path<String>,
    Body(how): Body<Shutdown>,
) -> Accepted {
    let timeout = how.timeout_seconds.map(|s| Duration::from_secs(u64::from(s)));
    accepted(&context, context.app.shut_down_vm(&reference, timeout).await?)
}

/// Pulls the plug.
#[utoipa::path(post, path = "/v1/vms/{vm}/power-off", tag = "vms",
    params(("vm" = String, Path, description = "name or id")),
    responses((status = 202, body = Task), (status = "default", body = Problem)))]
async fn power_off(
    _: Allow<Operate>,
    State(context): State<Context>,
    Path(reference): Path<String>,
) -> Accepted {
    accepted(&context, context.app.power_off_vm(&reference).await?)
}

/// Presses the reset button.
#[utoipa::path(post, path = "/v1/vms/{vm}/reset", tag = "vms",
    params(("vm" = String, Path, description = "name or id")),
    responses((status = 202, body = Task), (status = "default", body = Problem)))]
async fn reset(
    _: Allow<Operate>,
    State(context): State<Context>,
    Path(reference): Path<String>,
) -> Accepted {
    accepted(&context, context.app.reset_vm(&reference).await?)
}

/// Halts the vCPUs; memory stays.
#[utoipa::path(post, path = "/v1/vms/{vm}/pause", tag = "vms",
    params(("vm" = String, Path, description = "name or id")),
    responses((status = 202, body = Task), (status = "default", body = Problem)))]
async fn pause(
    _: Allow<Operate>,
    State(context): State<Context>,
    Path(reference): Path<String>,
) -> Accepted {
    accepted(&context, context.app.pause_vm(&reference).await?)
}

/// Lets the vCPUs run again.
#[utoipa::path(post, path = "/v1/vms/{vm}/resume", tag = "vms",
    params(("vm" = String, Path, description = "name or id")),
    responses((status = 202, body = Task), (status = "default", body = Problem)))]
async fn resume(
    _: Allow<Operate>,
    State(context): State<Context>,
    Path(reference): Path<String>,
) -> Accepted {
    accepted(&context, context.app.resume_vm(&reference).await?)
}

/// Moves a virtual machine to another server while it runs, or is paused.
#[utoipa::path(post, path = "/v1/vms/{vm}/migrate", tag = "vms", request_body = VmMigrate,
    params(("vm" = String, Path, description = "name or id")),
    responses((status = 202, body = Task), (status = "default", body = Problem)))]
async fn migrate(
    _: Allow<Operate>,
    State(context): State<Context>,
    Path(reference): Path<String>,
    Body(how): Body<VmMigrate>,
) -> Accepted {
    accepted(&context, context.app.migrate_vm(&reference, &how).await?)
}

/// Attaches a volume, or makes one and attaches it, while the VM is stopped.
#[utoipa::path(post, path = "/v1/vms/{vm}/disks", tag = "vms", request_body = NewDisk,
    params(("vm" = String, Path, description = "name or id")),
    responses((status = 202, body = Task), (status = "default", body = Problem)))]
async fn add_disk(
    _: Allow<Configure>,
    State(context): State<Context>,
    Path(reference): Path<String>,
    Body(disk): Body<NewDisk>,
) -> Accepted {
    accepted(&context, context.app.add_disk(&reference, &disk).await?)
}

/// Takes a volume off a stopped VM; the volume stays.
#[utoipa::path(delete, path = "/v1/vms/{vm}/disks/{volume}", tag = "vms",
    params(("vm" = String, Path, description = "name or id"),
           ("volume" = String, Path, description = "name or id"),
           ("If-Match" = Option<String>, Header, description = "the ETag that was read")),
    responses((status = 200, body = Vm), (status = "default", body = Problem)))]
async fn remove_disk(
    _: Allow<Configure>,
    State(context): State<Context>,
    Path((reference, volume)): Path<(String, String)>,
    IfMatch(expected): IfMatch,
) -> Result<Tagged<Vm>, ApiError> {
    let id = context.app.remove_disk(&reference, &volume, expected).await?;
    tagged(&context, id)
}

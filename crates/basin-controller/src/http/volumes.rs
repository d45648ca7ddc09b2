//! `/v1/volumes`

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use basin_api::Problem;
use basin_api::reference::{List, MetaPatch};
use basin_api::task::Task;
use basin_api::volume::{Volume, VolumeCreate, VolumeGrow};
use basin_model::Bytes;
use basin_node::NodeApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Allow, Configure, View};
use super::convert::{self, labels};
use super::etag::{IfMatch, Tagged};
use super::extract::{Answer, Body, Pairs};
use super::tasks::{Accepted, accepted};
use super::{ApiError, Context};
use crate::intake::reach;

pub fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, patch, delete))
        .routes(routes!(grow))
}

/// All volumes, or those with certain labels.
#[utoipa::path(get, path = "/v1/volumes", tag = "volumes",
    params(("label" = Option<Vec<String>>, Query, description = "`KEY=VALUE`; all have to match")),
    responses((status = 200, body = List<Volume>), (status = "default", body = Problem)))]
async fn list(
    _: Allow<View>,
    State(context): State<Context>,
    query: Pairs,
) -> Answer<List<Volume>> {
    let wanted = labels::selector(query.only(&["label"])?)?;
    let snapshot = context.app.inventory().read();
    let volumes = snapshot.volumes.values();
    let matching = volumes.filter(|v| labels::matches(&wanted, &v.value.meta.labels));
    let items = matching.map(|v| convert::volume::volume(v, &snapshot)).collect();
    Ok(Json(List { items, revision: snapshot.revision.0 }))
}

/// Makes a volume: blank, or a clone of an image or of another volume.
#[utoipa::path(post, path = "/v1/volumes", tag = "volumes", request_body = VolumeCreate,
    responses((status = 202, body = Task), (status = "default", body = Problem)))]
async fn create(
    _: Allow<Configure>,
    State(context): State<Context>,
    Body(request): Body<VolumeCreate>,
) -> Accepted {
    accepted(&context, context.app.create_volume(&request).await?)
}

/// One volume, with what it occupies.
#[utoipa::path(get, path = "/v1/volumes/{volume}", tag = "volumes",
    params(("volume" = String, Path, description = "name or id")),
    responses((status = 200, body = Volume), (status = "default", body = Problem)))]
async fn show(
    _: Allow<View>,
    State(context): State<Context>,
    Path(reference): Path<String>,
) -> Result<Tagged<Volume>, ApiError> {
    let (mut shown, volume, host) = {
        let snapshot = context.app.inventory().read();
        let record = snapshot.volume(&reference)?;
        let shown = convert::volume::volume(record, &snapshot);
        let local = context.app.nodes().local();
        let host = reach::choose_for(&record.value, local, &snapshot).ok();
        (shown, record.value.clone(), host)
    };
    if let Some(host) = host {
        let ask = |node: Arc<dyn NodeApi>| async move { node.allocated(&volume).await };
        let allocated = context.app.nodes().figures(host, ask).await;
        shown.allocated_bytes = allocated.ok().map(Bytes::get);
    }
    let revision = shown.meta.revision;
    Ok(Tagged(shown, revision))
}

/// Renames, describes or labels a volume.
#[utoipa::path(patch, path = "/v1/volumes/{volume}", tag = "volumes", request_body = MetaPatch,
    params(("volume" = String, Path, description = "name or id"),
           ("If-Match" = Option<String>, Header, description = "the ETag that was read")),
    responses((status = 200, body = Volume), (status = "default", body = Problem)))]
async fn patch(
    _: Allow<Configure>,
    State(context): State<Context>,
    Path(reference): Path<String>,
    IfMatch(expected): IfMatch,
    Body(patch): Body<MetaPatch>,
) -> Result<Tagged<Volume>, ApiError> {
    let id = context.app.patch_volume(&reference, &patch, expected).await?;
    let snapshot = context.app.inventory().read();
    let record = snapshot.volume(&id.to_string())?;
    Ok(Tagged(convert::volume::volume(record, &snapshot), record.revision.0))
}

/// Deletes a volume that no VM has and no clone needs.
#[utoipa::path(delete, path = "/v1/volumes/{volume}", tag = "volumes",
    params(("volume" = String, Path, description = "name or id"),
           ("If-Match" = Option<String>, Header, description = "the ETag that was read")),
    responses((status = 202, body = Task), (status = "default", body = Problem)))]
async fn delete(
    _: Allow<Configure>,
    State(context): State<Context>,
    Path(reference): Path<String>,
    IfMatch(expected): IfMatch,
) -> Accepted {
    accepted(&context, context.app.delete_volume(&reference, expected).await?)
}

/// Grows a volume while no VM runs on it.
#[utoipa::path(post, path = "/v1/volumes/{volume}/grow", tag = "volumes", request_body = VolumeGrow,
    params(("volume" = String, Path, description = "name or id")),
    responses((status = 202, body = Task), (status = "default", body = Problem)))]
async fn grow(
    _: Allow<Configure>,
    State(context): State<Context>,
    Path(reference): Path<String>,
    Body(request): Body<VolumeGrow>,
) -> Accepted {
    accepted(&context, context.app.grow_volume(&reference, Bytes(request.size_bytes)).await?)
}

//! `/v1/networks`

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use basin_api::Problem;
use basin_api::network::{Network, NetworkCreate};
use basin_api::reference::{List, MetaPatch};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Allow, Configure, View};
use super::convert;
use super::etag::{IfMatch, Tagged};
use super::extract::{Answer, Body};
use super::{ApiError, Context};

pub fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(show, patch, delete))
}

/// All networks.
#[utoipa::path(get, path = "/v1/networks", tag = "networks",
    responses((status = 200, body = List<Network>), (status = "default", body = Problem)))]
async fn list(_: Allow<View>, State(context): State<Context>) -> Answer<List<Network>> {
    let snapshot = context.app.inventory().read();
    let networks = snapshot.networks.values();
    let items = networks.map(|n| convert::network::network(n, &snapshot)).collect();
    Ok(Json(List { items, revision: snapshot.revision.0 }))
}

/// Makes a network; servers follow at once.
#[utoipa::path(post, path = "/v1/networks", tag = "networks", request_body = NetworkCreate,
    responses((status = 201, body = Network), (status = "default", body = Problem)))]
async fn create(
    _: Allow<Configure>,
    State(context): State<Context>,
    Body(request): Body<NetworkCreate>,
) -> Result<(StatusCode, Tagged<Network>), ApiError> {
    let id = context.app.create_network(&request).await?;
    Ok((StatusCode::CREATED, tagged(&context, &id.to_string())?))
}

/// One network.
#[utoipa::path(get, path = "/v1/networks/{network}", tag = "networks",
    params(("network" = String, Path, description = "name or id")),
    responses((status = 200, body = Network), (status = "default", body = Problem)))]
async fn show(
    _: Allow<View>,
    State(context): State<Context>,
    Path(reference): Path<String>,
) -> Result<Tagged<Network>, ApiError> {
    tagged(&context, &reference)
}

fn tagged(context: &Context, reference: &str) -> Result<Tagged<Network>, ApiError> {
    let snapshot = context.app.inventory().read();
    let record = snapshot.network(reference)?;
    Ok(Tagged(convert::network::network(record, &snapshot), record.revision.0))
}

/// Renames, describes or labels a network.
#[utoipa::path(patch, path = "/v1/networks/{network}", tag = "networks", request_body = MetaPatch,
    params(("network" = String, Path, description = "name or id"),
           ("If-Match" = Option<String>, Header, description = "the ETag that was read")),
    responses((status = 200, body = Network), (status = "default", body = Problem)))]
async fn patch(
    _: Allow<Configure>,
    State(context): State<Context>,
    Path(reference): Path<String>,
    IfMatch(expected): IfMatch,
    Body(patch): Body<MetaPatch>,
) -> Result<Tagged<Network>, ApiError> {
    let id = context.app.patch_network(&reference, &patch, expected).await?;
    tagged(&context, &id.to_string())
}

/// Deletes a network that no VM is on, with all that it is made of on servers.
#[utoipa::path(delete, path = "/v1/networks/{network}", tag = "networks",
    params(("network" = String, Path, description = "name or id"),
           ("If-Match" = Option<String>, Header, description = "the ETag that was read")),
    responses((status = 204), (status = "default", body = Problem)))]
async fn delete(
    _: Allow<Configure>,
    State(context): State<Context>,
    Path(reference): Path<String>,
    IfMatch(expected): IfMatch,
) -> Result<StatusCode, ApiError> {
    context.app.delete_network(&reference, expected).await?;
    Ok(StatusCode::NO_CONTENT)
}

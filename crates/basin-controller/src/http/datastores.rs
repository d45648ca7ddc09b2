//! `/v1/datastores`

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use basin_api::Problem;
use basin_api::datastore::{Datastore, DatastoreCreate};
use basin_api::reference::{List, MetaPatch};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Administer, Allow, View};
use super::convert;
use super::etag::{IfMatch, Tagged};
use super::extract::{Answer, Body};
use super::leader::Asked;
use super::{ApiError, Context};

pub fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(show, patch, delete))
}

/// All datastores, with their space.
#[utoipa::path(get, path = "/v1/datastores", tag = "datastores",
    responses((status = 200, body = List<Datastore>), (status = "default", body = Problem)))]
async fn list(_: Allow<View>, State(context): State<Context>) -> Answer<List<Datastore>> {
    let capacities = context.app.capacities().await;
    let snapshot = context.app.inventory().read();
    let datastores = snapshot.datastores.values();
    let items = datastores
        .map(|d| convert::datastore::datastore(d, capacities.get(&d.value.id).copied(), &snapshot))
        .collect();
    Ok(Json(List { items, revision: snapshot.revision.0 }))
}

/// Makes a directory a datastore: of one server, or of all that have the same storage there.
#[utoipa::path(post, path = "/v1/datastores", tag = "datastores", request_body = DatastoreCreate,
    responses((status = 201, body = Datastore), (status = "default", body = Problem)))]
async fn create(
    _: Allow<Administer>,
    State(context): State<Context>,
    Extension(Asked(asked)): Extension<Asked>,
    Body(request): Body<DatastoreCreate>,
) -> Result<(StatusCode, Tagged<Datastore>), ApiError> {
    let id = context.app.create_datastore(&request, asked).await?;
    Ok((StatusCode::CREATED, tagged(&context, &id.to_string()).await?))
}

/// One datastore, with its space.
#[utoipa::path(get, path = "/v1/datastores/{datastore}", tag = "datastores",
    params(("datastore" = String, Path, description = "name or id")),
    responses((status = 200, body = Datastore), (status = "default", body = Problem)))]
async fn show(
    _: Allow<View>,
    State(context): State<Context>,
    Path(reference): Path<String>,
) -> Result<Tagged<Datastore>, ApiError> {
    tagged(&context, &reference).await
}

async fn tagged(context: &Context, reference: &str) -> Result<Tagged<Datastore>, ApiError> {
    let capacities = context.app.capacities().await;
    let snapshot = context.app.inventory().read();
    let record = snapshot.datastore(reference)?;
    let capacity = capacities.get(&record.value.id).copied();
    Ok(Tagged(convert::datastore::datastore(record, capacity, &snapshot), record.revision.0))
}

/// Renames, describes or labels a datastore.
#[utoipa::path(patch, path = "/v1/datastores/{datastore}", tag = "datastores", request_body = MetaPatch,
    params(("datastore" = String, Path, description = "name or id"),
           ("If-Match" = Option<String>, Header, description = "the ETag that was read")),
    responses((status = 200, body = Datastore), (status = "default", body = Problem)))]
async fn patch(
    _: Allow<Administer>,
    State(context): State<Context>,
    Path(reference): Path<String>,
    IfMatch(expected): IfMatch,
    Body(patch): Body<MetaPatch>,
) -> Result<Tagged<Datastore>, ApiError> {
    let id = context.app.patch_datastore(&reference, &patch, expected).await?;
    tagged(&context, &id.to_string()).await
}

/// Forgets a datastore that holds nothing; the directory stays.
#[utoipa::path(delete, path = "/v1/datastores/{datastore}", tag = "datastores",
    params(("datastore" = String, Path, description = "name or id"),
           ("If-Match" = Option<String>, Header, description = "the ETag that was read")),
    responses((status = 204), (status = "default", body = Problem)))]
async fn delete(
    _: Allow<Administer>,
    State(context): State<Context>,
    Path(reference): Path<String>,
    IfMatch(expected): IfMatch,
) -> Result<StatusCode, ApiError> {
    context.app.delete_datastore(&reference, expected).await?;
    Ok(StatusCode::NO_CONTENT)
}

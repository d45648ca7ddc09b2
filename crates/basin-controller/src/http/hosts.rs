//! `/v1/hosts`

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use basin_api::Problem;
use basin_api::cluster::DrainRequest;
use basin_api::host::{Host, TrunkSet};
use basin_api::reference::{List, MetaPatch};
use basin_model::HostId;
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Administer, Allow, View};
use super::convert;
use super::etag::{IfMatch, Tagged};
use super::extract::{Answer, Body, Params};
use super::{ApiError, Context};
use crate::app::baseline;

pub fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show, patch, remove))
        .routes(routes!(drain, undrain))
        .routes(routes!(set_trunk, unset_trunk))
}

/// All servers.
#[utoipa::path(get, path = "/v1/hosts", tag = "hosts",
    responses((status = 200, body = List<Host>), (status = "default", body = Problem)))]
async fn list(_: Allow<View>, State(context): State<Context>) -> Answer<List<Host>> {
    let (usages, stuck) = tokio::join!(context.app.nodes().usages(), context.app.stuck());
    let snapshot = context.app.inventory().read();
    let baselines = baseline::of(&snapshot);
    let shown = snapshot.hosts.values().map(|record| {
        let mut host = convert::host::host(record, &snapshot, &baselines);
        host.stuck = convert::host::stuck(record.value.id, &stuck);
        if let Some(usage) = usages.get(&record.value.id) {
            convert::usage::of_host(&mut host, usage);
        }
        host
    });
    let items = shown.collect();
    Ok(Json(List { items, revision: snapshot.revision.0 }))
}

/// One server, with its figures of the moment.
#[utoipa::path(get, path = "/v1/hosts/{host}", tag = "hosts",
    params(("host" = String, Path, description = "name or id")),
    responses((status = 200, body = Host), (status = "default", body = Problem)))]
async fn show(
    _: Allow<View>,
    State(context): State<Context>,
    Path(reference): Path<String>,
) -> Result<Tagged<Host>, ApiError> {
    let (mut host, id) = {
        let snapshot = context.app.inventory().read();
        let record = snapshot.host(&reference)?;
        (convert::host::host(record, &snapshot, &baseline::of(&snapshot)), record.value.id)
    };
    let (usage, stuck) = tokio::join!(context.app.nodes().usage(id), context.app.stuck());
    host.stuck = convert::host::stuck(id, &stuck);
    convert::usage::of_host(&mut host, &usage);
    let revision = host.meta.revision;
    Ok(Tagged(host, revision))
}

/// Renames, describes or labels a server.
#[utoipa::path(patch, path = "/v1/hosts/{host}", tag = "hosts", request_body = MetaPatch,
    params(("host" = String, Path, description = "name or id"),
           ("If-Match" = Option<String>, Header, description = "the ETag that was read")),
    responses((status = 200, body = Host), (status = "default", body = Problem)))]
async fn patch(
    _: Allow<Administer>,
    State(context): State<Context>,
    Path(reference): Path<String>,
    IfMatch(expected): IfMatch,
    Body(patch): Body<MetaPatch>,
) -> Result<Tagged<Host>, ApiError> {
    let id = context.app.patch_host(&reference, &patch, expected).await?;
    let snapshot = context.app.inventory().read();
    let record = snapshot.host(&id.to_string())?;
    let host = convert::host::host(record, &snapshot, &baseline::of(&snapshot));
    Ok(Tagged(host, record.revision.0))
}

/// Empties a server of running VMs, and keeps it empty: it is `draining`, then `drained`.
#[utoipa::path(post, path = "/v1/hosts/{host}/drain", tag = "hosts", request_body = DrainRequest,
    params(("host" = String, Path, description = "name or id")),
    responses((status = 202, body = Host), (status = "default", body = Problem)))]
async fn drain(
    _: Allow<Administer>,
    State(context): State<Context>,
    Path(reference): Path<String>,
    Body(how): Body<DrainRequest>,
) -> Result<(StatusCode, Json<Host>), ApiError> {
    let id = context.app.drain_host(&reference, &how).await?;
    Ok((StatusCode::ACCEPTED, Json(one(&context, id)?)))
}

/// Ends the maintenance: the server takes VMs again.
#[utoipa::path(delete, path = "/v1/hosts/{host}/drain", tag = "hosts",
    params(("host" = String, Path, description = "name or id")),
    responses((status = 200, body = Host), (status = "default", body = Problem)))]
async fn undrain(
    _: Allow<Administer>,
    State(context): State<Context>,
    Path(reference): Path<String>,
) -> Answer<Host> {
    let id = context.app.undrain_host(&reference).await?;
    Ok(Json(one(&context, id)?))
}

/// Names the interface by which a server has VLANs of the physical network: all, each
/// with its tag, or one without.
#[utoipa::path(put, path = "/v1/hosts/{host}/trunk", tag = "hosts", request_body = TrunkSet,
    params(("host" = String, Path, description = "name or id")),
    responses((status = 200, body = Host), (status = "default", body = Problem)))]
async fn set_trunk(
    _: Allow<Administer>,
    State(context): State<Context>,
    Path(reference): Path<String>,
    Body(trunk): Body<TrunkSet>,
) -> Answer<Host> {
    let id = context.app.set_trunk(&reference, &trunk).await?;
    Ok(Json(one(&context, id)?))
}

/// Which trunk.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WhichTrunk {
    #[serde(default)]
    untagged: Option<u16>,
}

/// Takes an interface back by which a server had VLANs.
#[utoipa::path(delete, path = "/v1/hosts/{host}/trunk", tag = "hosts",
    params(("host" = String, Path, description = "name or id"),
           ("untagged" = Option<u16>, Query, description = "the one that has this VLAN without tags")),
    responses((status = 200, body = Host), (status = "default", body = Problem)))]
async fn unset_trunk(
    _: Allow<Administer>,
    State(context): State<Context>,
    Path(reference): Path<String>,
    Params(which): Params<WhichTrunk>,
) -> Answer<Host> {
    let id = context.app.unset_trunk(&reference, which.untagged).await?;
    Ok(Json(one(&context, id)?))
}

/// What to do with a server that does not answer.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Removal {
    #[serde(default)]
    dead: bool,
}

/// Shuts a server out of the cluster for good. It must be empty, unless it is `dead`.
#[utoipa::path(delete, path = "/v1/hosts/{host}", tag = "hosts",
    params(("host" = String, Path, description = "name or id"),
           ("dead" = Option<bool>, Query, description = "it never comes back: whatever was on it is given up")),
    responses((status = 204), (status = "default", body = Problem)))]
async fn remove(
    _: Allow<Administer>,
    State(context): State<Context>,
    Path(reference): Path<String>,
    Params(removal): Params<Removal>,
) -> Result<StatusCode, ApiError> {
    context.app.remove_host(&reference, removal.dead).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn one(context: &Context, id: HostId) -> Result<Host, ApiError> {
    let snapshot = context.app.inventory().read();
    let record = snapshot.host(&id.to_string())?;
    Ok(convert::host::host(record, &snapshot, &baseline::of(&snapshot)))
}

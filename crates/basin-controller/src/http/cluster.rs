//! `/v1/cluster`

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use basin_api::Problem;
use basin_api::cluster::{
    AttemptBegun, Cluster, ClusterCreate, ClusterJoin, FailedAttempt, JoinTokenCreate,
    JoinTokenCreated, Mode, Store,
};
use basin_api::reference::Reference;
use basin_model::HostId;
use basin_node::NodeError;
use basin_node::cluster::wire::{
    JOIN_PATH, JoinAsk, LEADS_PATH, REMOVED_PATH, RENEW_PATH, RenewAnswer, RenewAsk, STORE_PATH,
    StoreSeen,
};
use basin_node::pki::SERVER_LIFE;
use basin_node::remote::refuse;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Administer, Allow, View};
use super::extract::{Answer, Body};
use super::{ApiError, Context};
use crate::app::App;
use crate::app::inventory::Snapshot;
use crate::cluster::leader::Lead;

pub fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new()
        .routes(routes!(show, form))
        .routes(routes!(join))
        .routes(routes!(create_token))
        .routes(routes!(backup))
}

/// The cluster, or that there is none.
#[utoipa::path(get, path = "/v1/cluster", tag = "cluster",
    responses((status = 200, body = Cluster), (status = "default", body = Problem)))]
async fn show(_: Allow<View>, State(context): State<Context>) -> Answer<Cluster> {
    Ok(Json(cluster(&context.app)))
}

/// Makes this server the first of a cluster. Its VMs run on; its API is away for a moment.
#[utoipa::path(post, path = "/v1/cluster", tag = "cluster", request_body = ClusterCreate,
    responses((status = 202, body = AttemptBegun), (status = "default", body = Problem)))]
async fn form(
    _: Allow<Administer>,
    State(context): State<Context>,
    Body(create): Body<ClusterCreate>,
) -> Result<(StatusCode, Json<AttemptBegun>), ApiError> {
    let attempt = context.app.form_cluster(&create).await?.to_string();
    Ok((StatusCode::ACCEPTED, Json(AttemptBegun { attempt })))
}

/// Has this server join a cluster. It must have no VMs, volumes and images.
#[utoipa::path(post, path = "/v1/cluster/join", tag = "cluster", request_body = ClusterJoin,
    responses((status = 202, body = AttemptBegun), (status = "default", body = Problem)))]
async fn join(
    _: Allow<Administer>,
    State(context): State<Context>,
    Body(join): Body<ClusterJoin>,
) -> Result<(StatusCode, Json<AttemptBegun>), ApiError> {
    let attempt = context.app.join_cluster(&join).await?.to_string();
    Ok((StatusCode::ACCEPTED, Json(AttemptBegun { attempt })))
}

/// Makes a token that lets one server join.
#[utoipa::path(post, path = "/v1/cluster/join-tokens", tag = "cluster",
    request_body = JoinTokenCreate,
    responses((status = 201, body = JoinTokenCreated), (status = "default", body = Problem)))]
async fn create_token(
    _: Allow<Administer>,
    State(context): State<Context>,
    Body(create): Body<JoinTokenCreate>,
) -> Result<(StatusCode, Json<JoinTokenCreated>), ApiError> {
    let (token, expires_at) = context.app.create_join_token(&create).await?;
    Ok((StatusCode::CREATED, Json(JoinTokenCreated { token, expires_at: expires_at.to_string() })))
}

/// Everything that the servers keep together, with its secrets, as one file.
#[utoipa::path(get, path = "/v1/cluster/backup", tag = "cluster",
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
              (status = "default", body = Problem)))]
async fn backup(
    _: Allow<Administer>,
    State(context): State<Context>,
) -> Result<axum::response::Response, ApiError> {
    let file = context.app.backup().await?;
    let stream = tokio_util::io::ReaderStream::new(tokio::fs::File::from_std(file));
    let kind = [(axum::http::header::CONTENT_TYPE, "application/octet-stream")];
    Ok((kind, axum::body::Body::from_stream(stream)).into_response())
}

/// Where servers ask to be let in. Not part of the API: who asks shows a token of the
/// cluster's in the question, and no other right.
pub fn joining(context: Context) -> axum::Router {
    axum::Router::new()
        .route(JOIN_PATH, axum::routing::post(admit))
        .route(&format!("{REMOVED_PATH}/{{host}}"), axum::routing::get(removed))
        .route(LEADS_PATH, axum::routing::get(leads))
        .route(STORE_PATH, axum::routing::get(store))
        .route(RENEW_PATH, axum::routing::post(renew))
        .with_state(context)
}

/// For those that know an older one only.
async fn store(State(context): State<Context>) -> Json<StoreSeen> {
    let endpoints = context.app.store_endpoints();
    let snapshot = context.app.inventory().read();
    Json(StoreSeen { epoch: snapshot.cluster.as_ref().map_or(0, |c| c.epoch), endpoints })
}

/// Whoever is about to pass a change on asks first: it cannot be sent twice.
async fn leads(State(context): State<Context>) -> Json<bool> {
    Json(context.app.leadership.leads())
}

/// One that is not known is not removed: it may be newer than what is known here.
async fn removed(State(context): State<Context>, Path(host): Path<String>) -> Json<bool> {
    let snapshot = context.app.inventory().read();
    let removed =
        |host| snapshot.removed_hosts.contains_key(&host) && !snapshot.hosts.contains_key(&host);
    Json(host.parse().is_ok_and(removed))
}

async fn admit(
    State(context): State<Context>,
    Body(ask): Body<JoinAsk>,
) -> Result<Json<basin_node::cluster::wire::JoinAnswer>, axum::response::Response> {
    match context.app.admit(&ask).await {
        Ok(answer) => Ok(Json(answer)),
        Err(problem) => {
            tracing::info!(host = %ask.host, name = %ask.name, "refused to join: {}", problem.detail);
            Err(refuse(NodeError(problem)))
        }
    }
}

/// Who asks shows the key that it had a certificate for.
async fn renew(
    State(context): State<Context>,
    Body(ask): Body<RenewAsk>,
) -> Result<Json<RenewAnswer>, axum::response::Response> {
    match context.app.renew_expired(&ask).await {
        Ok(answer) => Ok(Json(answer)),
        Err(problem) => {
            tracing::info!("an expired certificate was not renewed: {}", problem.detail);
            Err(refuse(NodeError(problem)))
        }
    }
}

fn cluster(app: &App) -> Cluster {
    let snapshot = app.inventory().read();
    let lead = app.leadership.now();
    let local = app.nodes().local();
    let leader = match lead {
        Lead::Me(_) => Some(local),
        Lead::Other(host) => Some(host),
        Lead::Alone | Lead::Nobody => None,
    };
    let alone = app.leadership.now() == Lead::Alone;
    Cluster {
        mode: if alone { Mode::Single } else { Mode::Cluster },
        id: snapshot.cluster.as_ref().map(|c| c.id.to_string()),
        answered_by: reference(local, &snapshot),
        leader: leader.map(|host| reference(host, &snapshot)),
        store: app.seat.contact().map(|contact| Store {
            external: snapshot.cluster.as_ref().is_some_and(|c| c.external_etcd.is_some()),
            members: snapshot.voters.keys().map(|host| reference(*host, &snapshot)).collect(),
            asks: contact.asks,
            age_ms: u64::try_from(contact.age.as_millis()).unwrap_or(u64::MAX),
            lost: contact.lost,
        }),
        certificate_life_seconds: snapshot.cluster.as_ref().map(|c| {
            let usual = SERVER_LIFE.unsigned_abs();
            c.certificate_life.unwrap_or(usual).as_secs()
        }),
        failed_attempt: app.seat.failed().map(|failed| FailedAttempt {
            attempt: failed.attempt.to_string(),
            code: failed.problem.code,
            detail: failed.problem.detail,
            advice: failed.problem.advice,
        }),
    }
}

fn reference(host: HostId, snapshot: &Snapshot) -> Reference {
    let name = snapshot.hosts.get(&host).map(|h| h.value.meta.name.to_string());
    Reference { id: host.to_string(), name }
}

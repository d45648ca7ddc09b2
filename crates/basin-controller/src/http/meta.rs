//! `/v1/version`, `/v1/openapi.json` and `/metrics`

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use basin_api::host::Version;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Context;
use super::auth::{Allow, View};
use super::metrics;

pub fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new()
        .routes(routes!(version))
        .routes(routes!(openapi))
        .routes(routes!(prometheus))
}

/// Who answers.
#[utoipa::path(get, path = "/v1/version", tag = "meta", responses((status = 200, body = Version)))]
async fn version(_: Allow<View>, State(context): State<Context>) -> Json<Version> {
    let local = context.app.nodes().local();
    let snapshot = context.app.inventory().read();
    let host = snapshot.hosts.get(&local).map(|h| h.value.meta.name.to_string());
    Json(Version {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        api: "v1".to_owned(),
        host: host.unwrap_or_default(),
    })
}

/// This API as an OpenAPI document.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "meta",
    responses((status = 200, content_type = "application/json")))]
async fn openapi(_: Allow<View>) -> Json<utoipa::openapi::OpenApi> {
    Json(super::openapi())
}

/// Figures for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "meta",
    responses((status = 200, content_type = "application/openmetrics-text")))]
async fn prometheus(_: Allow<View>, State(context): State<Context>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], metrics::render(&context).await)
}

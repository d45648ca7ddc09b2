//! The REST API: one small file a resource, request in, answer out. What anything
//! means is in `app`; the shapes are in `basin-api`.

pub mod auth;
pub mod cluster;
mod console;
mod convert;
mod datastores;
mod error;
mod etag;
mod events;
mod extract;
pub mod forward;
mod hosts;
mod images;
pub mod leader;
pub mod listen;
mod meta;
mod metrics;
mod networks;
mod tasks;
mod tokens;
mod vms;
mod volumes;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;

pub use error::ApiError;

use crate::app::App;
use crate::app::auth::SharedAuthorizer;

/// Requests carry documents, not disks: those are uploads, and stream.
pub const BODY_MAX: usize = 2 << 20;

/// What every handler has at hand.
#[derive(Clone)]
pub struct Context {
    pub app: Arc<App>,
    pub authorizer: SharedAuthorizer,
    metrics: Arc<metrics::Metrics>,
}

impl Context {
    pub fn new(app: Arc<App>, authorizer: SharedAuthorizer) -> Context {
        Context { app, authorizer, metrics: Arc::default() }
    }
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Basin",
        description = "Many servers, one pool: virtual machines, disks, images and networks. \
                       Errors are application/problem+json; long operations answer with a task."
    ),
    components(schemas(basin_api::event::Event, basin_api::Problem)),
    security(("token" = [])),
    modifiers(&Security)
)]
struct Document;

struct Security;

impl utoipa::Modify for Security {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        let components = openapi.components.get_or_insert_with(Default::default);
        components.add_security_scheme("token", scheme);
    }
}

fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::with_openapi(Document::openapi())
        .merge(vms::routes())
        .merge(volumes::routes())
        .merge(images::routes())
        .merge(datastores::routes())
        .merge(networks::routes())
        .merge(hosts::routes())
        .merge(tasks::routes())
        .merge(cluster::routes())
        .merge(tokens::routes())
        .merge(events::routes())
        .merge(console::routes())
        .merge(meta::routes())
}

/// The API as a document, as `openapi/basin-v1.json` keeps it.
pub fn openapi() -> utoipa::openapi::OpenApi {
    routes().into_openapi()
}

/// Every route, behind authentication.
pub fn router(context: Context) -> Router {
    let (router, _) = routes().split_for_parts();
    router
        .fallback(error::no_such_path)
        .method_not_allowed_fallback(error::no_such_method)
        .layer(axum::middleware::from_fn_with_state(context.clone(), metrics::observe))
        .layer(axum::middleware::from_fn_with_state(context.clone(), leader::to_leader))
        .layer(axum::middleware::from_fn_with_state(context.clone(), auth::authenticate))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(context)
}

/// The same as text, a line a member so that changes to it can be reviewed.
pub fn openapi_json() -> String {
    let mut text = openapi().to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

//! The answering end: a server's node, for other servers and nobody else.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::{any, post};

use super::call::{self, UNKNOWN, refuse_with};
use super::methods::{
    Allocated, CapacityOf, CheckSubnet, CloseDatastore, CreateVolume, DeleteImage, DeleteVolume,
    DiscardDatastore, DiscardUpload, ForgetVm, GrowVolume, ImportImage, LongMethod, Method,
    OpenDatastore, Status, Usage, WitnessDatastore,
};
use super::moves::{
    GuestHardware, MigrateAbort, MigrateBegin, MigrateCancel, MigrateListenAgain, MigratePrepare,
    MigrateReconnect, MigrateReport, Support,
};
use super::turns::Turns;
use super::{PATH, console, image, long, upload};
use crate::api::NodeApi;
use crate::pki::FromServer;

/// Arguments are documents; what is larger streams.
const ARGS_MAX: usize = 4 << 20;

/// What every handler has at hand.
#[derive(Clone)]
pub(super) struct Served {
    pub node: Arc<dyn NodeApi>,
    pub turns: Arc<Turns>,
}

/// The node's methods under [`PATH`]; to be merged with the API's router.
pub fn router(node: Arc<dyn NodeApi>) -> Router {
    let methods = Router::new()
        .merge(short::<Status>())
        .merge(short::<Usage>())
        .merge(short::<OpenDatastore>())
        .merge(short::<CloseDatastore>())
        .merge(short::<DiscardDatastore>())
        .merge(short::<WitnessDatastore>())
        .merge(short::<CapacityOf>())
        .merge(short::<CheckSubnet>())
        .merge(long::<ImportImage>())
        .route(&format!("/{}", upload::NAME), post(upload::handle))
        .merge(short::<DiscardUpload>())
        .route(&format!("/{}", image::NAME), post(image::handle))
        .merge(short::<DeleteImage>())
        .merge(long::<CreateVolume>())
        .merge(short::<GrowVolume>())
        .merge(short::<DeleteVolume>())
        .merge(short::<Allocated>())
        .merge(short::<ForgetVm>())
        .merge(short::<Support>())
        .merge(short::<GuestHardware>())
        .merge(short::<MigratePrepare>())
        .merge(short::<MigrateBegin>())
        .merge(short::<MigrateReport>())
        .merge(short::<MigrateCancel>())
        .merge(short::<MigrateAbort>())
        .merge(short::<MigrateListenAgain>())
        .merge(short::<MigrateReconnect>())
        .route(&format!("/{}", console::NAME), post(console::handle))
        .route(&format!("/{}", console::LOG), post(console::handle_log))
        .route("/{*method}", any(unknown))
        .layer(DefaultBodyLimit::max(ARGS_MAX))
        .layer(from_fn(servers_only));
    Router::new().nest(PATH, methods).with_state(Served { node, turns: Arc::default() })
}

fn short<M: Method>() -> Router<Served> {
    Router::new().route(&format!("/{}", M::NAME), post(call::handle::<M>))
}

fn long<M: LongMethod>() -> Router<Served> {
    Router::new().route(&format!("/{}", M::NAME), post(long::handle::<M>))
}

async fn servers_only(request: Request, next: Next) -> Response {
    if request.extensions().get::<FromServer>().is_some() {
        return next.run(request).await;
    }
    let detail = "this is between the servers of the cluster".to_owned();
    refuse_with(StatusCode::FORBIDDEN, "forbidden", detail, "use the API under /v1")
}

async fn unknown(Path(method): Path<String>, State(_): State<Served>) -> Response {
    let version = env!("CARGO_PKG_VERSION");
    let detail = format!("Basin {version} does not know the method '{method}'");
    refuse_with(StatusCode::NOT_FOUND, UNKNOWN, detail, "upgrade Basin on this server")
}

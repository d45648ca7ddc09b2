//! `/v1/vms/{vm}/console`: the serial line, live and as a log.

use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use basin_api::Problem;
use basin_model::{HostId, VmId};
use basin_node::ConsoleLink;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Allow, Operate, View};
use super::extract::Params;
use super::{ApiError, Context};
use crate::app::nodes;
use crate::app::problems;

const LOG_DEFAULT: usize = 64 << 10;
const LOG_MAX: usize = 1 << 20;

pub fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(console)).routes(routes!(log))
}

/// The VM and the server to ask for its console.
fn find(context: &Context, reference: &str) -> Result<(VmId, HostId), ApiError> {
    let snapshot = context.app.inventory().read();
    let vm = &snapshot.vm(reference)?.value;
    let Some(placement) = vm.placement else {
        let advice = "Start it: it has never run, so it has said nothing.";
        return Err(problems::wrong_state("vm", &vm.meta.name, "not on any server", advice).into());
    };
    Ok((vm.id, placement.host))
}

/// The serial line as a WebSocket: binary messages both ways, first what was said before.
#[utoipa::path(get, path = "/v1/vms/{vm}/console", tag = "vms",
    params(("vm" = String, Path, description = "name or id")),
    responses((status = 101), (status = "default", body = Problem)))]
async fn console(
    _: Allow<Operate>,
    State(context): State<Context>,
    Path(reference): Path<String>,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let (vm, host) = find(&context, &reference)?;
    let upgrade = upgrade.map_err(|e| problems::malformed(e.body_text()))?;
    let link = context.app.nodes().get(host)?.console(vm).await.map_err(nodes::refused)?;
    Ok(upgrade.on_upgrade(move |socket| relay(socket, link)))
}

async fn relay(mut socket: WebSocket, mut link: ConsoleLink) {
    if socket.send(Message::Binary(link.history.into())).await.is_err() {
        return;
    }
    loop {
        tokio::select! {
            said = link.output.recv() => {
                let Some(bytes) = said else { break };
                if socket.send(Message::Binary(bytes.into())).await.is_err() {
                    return;
                }
            }
            typed = socket.recv() => {
                let bytes = match typed {
                    Some(Ok(Message::Binary(bytes))) => bytes.to_vec(),
                    Some(Ok(Message::Text(text))) => text.as_bytes().to_vec(),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                };
                if link.input.send(bytes).await.is_err() {
                    break;
                }
            }
        }
    }
    // The VM has gone; the client is told in the protocol's own way.
    let _ = socket.send(Message::Close(None)).await;
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct LogParams {
    /// How much of its end; 65536 when absent, at most 1 MiB.
    bytes: Option<usize>,
}

/// The end of what the console said, also of a VM that is stopped.
#[utoipa::path(get, path = "/v1/vms/{vm}/console/log", tag = "vms",
    params(("vm" = String, Path, description = "name or id"), LogParams),
    responses((status = 200, content_type = "text/plain"), (status = "default", body = Problem)))]
async fn log(
    _: Allow<View>,
    State(context): State<Context>,
    Path(reference): Path<String>,
    Params(params): Params<LogParams>,
) -> Result<Response, ApiError> {
    let (vm, host) = find(&context, &reference)?;
    let bytes = params.bytes.unwrap_or(LOG_DEFAULT).min(LOG_MAX);
    let node = context.app.nodes().get(host)?;
    let log = node.console_log(vm, bytes).await.map_err(nodes::refused)?;
    // What a guest prints is not to be run by a browser.
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    Ok((headers, log).into_response())
}

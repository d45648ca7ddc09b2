//! `/v1/tasks`

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use basin_api::Problem;
use basin_api::reference::List;
use basin_api::task::{Task, TaskState};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Allow, Operate, View};
use super::convert;
use super::etag::Tagged;
use super::extract::{Answer, Params};
use super::{ApiError, Context};

/// A proxy in between may not like longer silences.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// `202 Accepted`, the task, and where it is.
pub type Accepted = Result<Response, ApiError>;

pub fn accepted(context: &Context, task: basin_model::task::Task) -> Accepted {
    let task = convert::task::started(&task, context.app.inventory().read().revision.0);
    let location = format!("/v1/tasks/{}", task.id);
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(task)).into_response())
}

pub fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show)).routes(routes!(cancel))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct ListParams {
    /// Only tasks in this state.
    state: Option<TaskState>,
}

/// Tasks under way and those of the past, newest first.
#[utoipa::path(get, path = "/v1/tasks", tag = "tasks", params(ListParams),
    responses((status = 200, body = List<Task>), (status = "default", body = Problem)))]
async fn list(
    _: Allow<View>,
    State(context): State<Context>,
    Params(params): Params<ListParams>,
) -> Answer<List<Task>> {
    let revision = context.app.inventory().read().revision.0;
    let tasks = context.app.tasks();
    let all = tasks.iter().rev().map(convert::task::task);
    let items = all.filter(|t| params.state.is_none_or(|s| s == t.state)).collect();
    Ok(Json(List { items, revision }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct ShowParams {
    /// Answer when the task is over, or after this many seconds (at most 60).
    wait: Option<u64>,
}

/// One task; with `wait`, once it is over.
#[utoipa::path(get, path = "/v1/tasks/{task}", tag = "tasks", params(("task" = String, Path), ShowParams),
    responses((status = 200, body = Task), (status = "default", body = Problem)))]
async fn show(
    _: Allow<View>,
    State(context): State<Context>,
    Path(id): Path<String>,
    Params(params): Params<ShowParams>,
) -> Result<Tagged<Task>, ApiError> {
    let task = match params.wait {
        None => context.app.task(&id)?,
        Some(seconds) => {
            let limit = Duration::from_secs(seconds).min(WAIT_MAX);
            context.app.wait_task(&id, limit).await?
        }
    };
    let task = convert::task::task(&task);
    let revision = task.revision;
    Ok(Tagged(task, revision))
}

/// Asks a task to stop and take back what it has done.
#[utoipa::path(post, path = "/v1/tasks/{task}/cancel", tag = "tasks", params(("task" = String, Path)),
    responses((status = 200, body = Task), (status = "default", body = Problem)))]
async fn cancel(
    _: Allow<Operate>,
    State(context): State<Context>,
    Path(id): Path<String>,
) -> Answer<Task> {
    let id = context.app.cancel_task(&id).await?;
    Ok(Json(convert::task::task(&context.app.task(&id.to_string())?)))
}

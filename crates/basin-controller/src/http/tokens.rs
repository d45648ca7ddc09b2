//! `/v1/tokens`

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use basin_api::Problem;
use basin_api::reference::List;
use basin_api::token::{Token, TokenCreate, TokenCreated};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Administer, Allow};
use super::convert;
use super::extract::{Answer, Body};
use super::{ApiError, Context};

pub fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(delete))
}

/// All tokens, without their secrets.
#[utoipa::path(get, path = "/v1/tokens", tag = "tokens",
    responses((status = 200, body = List<Token>), (status = "default", body = Problem)))]
async fn list(_: Allow<Administer>, State(context): State<Context>) -> Answer<List<Token>> {
    let snapshot = context.app.inventory().read();
    let items = snapshot.tokens.values().map(convert::token::token).collect();
    Ok(Json(List { items, revision: snapshot.revision.0 }))
}

/// Makes a token. Its secret is in this answer and nowhere else.
#[utoipa::path(post, path = "/v1/tokens", tag = "tokens", request_body = TokenCreate,
    responses((status = 201, body = TokenCreated), (status = "default", body = Problem)))]
async fn create(
    _: Allow<Administer>,
    State(context): State<Context>,
    Body(request): Body<TokenCreate>,
) -> Result<(StatusCode, Json<TokenCreated>), ApiError> {
    let (id, secret) = context.app.create_token(&request).await?;
    let snapshot = context.app.inventory().read();
    let token = convert::token::token(snapshot.token(&id.to_string())?);
    Ok((StatusCode::CREATED, Json(TokenCreated { token, secret })))
}

/// Revokes a token, at once.
#[utoipa::path(delete, path = "/v1/tokens/{token}", tag = "tokens",
    params(("token" = String, Path, description = "name or id")),
    responses((status = 204), (status = "default", body = Problem)))]
async fn delete(
    _: Allow<Administer>,
    State(context): State<Context>,
    Path(reference): Path<String>,
) -> Result<StatusCode, ApiError> {
    context.app.delete_token(&reference).await?;
    Ok(StatusCode::NO_CONTENT)
}

//! Problems as HTTP answers.

use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use basin_model::task::Problem;

use crate::app::problems;

/// What a handler fails with.
#[derive(Debug)]
pub struct ApiError(pub Problem);

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> ApiError {
        ApiError(problem)
    }
}

/// A problem in its wire shape.
pub fn wire(problem: &Problem) -> basin_api::Problem {
    let (status, title) = problems::status(&problem.code);
    basin_api::Problem {
        kind: format!("urn:basin:problem:{}", problem.code),
        title: title.to_owned(),
        status,
        code: problem.code.clone(),
        detail: problem.detail.clone(),
        advice: problem.advice.clone(),
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = wire(&self.0);
        if body.status >= 500 {
            tracing::warn!(code = body.code, "{}", body.detail);
        }
        let status = StatusCode::from_u16(body.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let kind = [(header::CONTENT_TYPE, basin_api::Problem::CONTENT_TYPE)];
        (status, kind, serde_json::to_string(&body).unwrap_or_default()).into_response()
    }
}

pub async fn no_such_path(uri: Uri) -> ApiError {
    ApiError(problems::not_found("path", uri.path()))
}

pub async fn no_such_method(method: Method, uri: Uri) -> Response {
    let problem = problems::malformed(format!("{} cannot be asked to {method}", uri.path()));
    let mut response = ApiError(problem).into_response();
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}

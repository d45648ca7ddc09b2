//! Bodies and queries, with refusals that are problems like all others.

use axum::Json;
use axum::extract::rejection::{BytesRejection, FailedToBufferBody};
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use super::{BODY_MAX, Context};
use crate::app::problems;

/// A JSON body. The content type is not asked for; an empty body stands for `{}`.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Context> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Context) -> Result<Self, ApiError> {
        let bytes = Bytes::from_request(request, state).await.map_err(|e| match e {
            BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => {
                ApiError(problems::too_large(BODY_MAX))
            }
            other => ApiError(problems::malformed(other.body_text())),
        })?;
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        parse(text).map(Body).map_err(|why| ApiError(problems::malformed(format!("body: {why}"))))
    }
}

/// The value, or where and why the JSON is none.
fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, String> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|e| {
        match e.path().iter().next() {
            // An unknown field is named by the error too, as its path alone is not clear.
            Some(_) => format!("{}: {}", e.path(), e.inner()),
            None => e.inner().to_string(),
        }
    })?;
    json.end().map_err(|e| e.to_string())?;
    Ok(value)
}

/// Query parameters.
pub struct Params<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Context> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &Context) -> Result<Self, ApiError> {
        Query::<T>::from_request_parts(parts, state)
            .await
            .map(|Query(value)| Params(value))
            .map_err(|e| ApiError(problems::malformed(format!("query: {}", e.body_text()))))
    }
}

/// Pairs of a query whose keys may repeat.
pub struct Pairs(pub Vec<(String, String)>);

impl FromRequestParts<Context> for Pairs {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &Context) -> Result<Self, ApiError> {
        Params::from_request_parts(parts, state).await.map(|Params(pairs)| Pairs(pairs))
    }
}

impl Pairs {
    /// Refuses keys that mean nothing, so that a misspelt filter does not show everything.
    pub fn only(self, known: &[&str]) -> Result<Vec<(String, String)>, ApiError> {
        match self.0.iter().find(|(key, _)| !known.contains(&key.as_str())) {
            Some((key, _)) => {
                Err(problems::malformed(format!("query: '{key}' means nothing here")).into())
            }
            None => Ok(self.0),
        }
    }
}

/// What a handler answers with.
pub type Answer<T> = Result<Json<T>, ApiError>;

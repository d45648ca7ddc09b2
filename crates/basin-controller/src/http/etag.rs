//! Conditional changes: `ETag` and `If-Match`. The tag is the revision in quotes.

use axum::Json;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use basin_store::Revision;
use serde::Serialize;

use super::Context;
use super::error::ApiError;
use crate::app::problems;

/// The revision that the caller read, if it says one.
pub struct IfMatch(pub Option<Revision>);

impl FromRequestParts<Context> for IfMatch {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Context) -> Result<Self, ApiError> {
        let Some(value) = parts.headers.get(header::IF_MATCH) else { return Ok(IfMatch(None)) };
        parse(value).map(IfMatch).ok_or_else(|| {
            problems::malformed("If-Match is one ETag as it was read, such as \"17\", or *").into()
        })
    }
}

fn parse(value: &HeaderValue) -> Option<Option<Revision>> {
    let text = value.to_str().ok()?.trim();
    if text == "*" {
        return Some(None);
    }
    let number = text.strip_prefix('"')?.strip_suffix('"')?;
    number.parse().ok().map(|n| Some(Revision(n)))
}

/// A body with its ETag.
pub struct Tagged<T>(pub T, pub u64);

impl<T: Serialize> IntoResponse for Tagged<T> {
    fn into_response(self) -> Response {
        let tag = format!("\"{}\"", self.1);
        ([(header::ETAG, tag)], Json(self.0)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: Option<Option<u64>>) {
        let value = HeaderValue::from_str(text).unwrap();
        assert_eq!(parse(&value), expect.map(|e| e.map(Revision)), "{text}");
    }

    #[test]
    fn a_tag_is_a_number_in_quotes() {
        check("\"17\"", Some(Some(17)));
        check("*", Some(None));
        for bad in ["17", "\"\"", "W/\"17\"", "\"17\", \"18\"", "\"x\""] {
            check(bad, None);
        }
    }
}

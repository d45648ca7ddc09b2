//! Authentication of every request, and the rights that each endpoint asks for.
//!
//! A handler names its right as an argument: `_: Allow<Configure>`. A test calls
//! every endpoint in the OpenAPI document with an authorizer that refuses all.

use std::marker::PhantomData;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::header;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use basin_model::task::Problem;
pub use basin_node::pki::FromServer;

use super::Context;
use super::error::ApiError;
use super::forward::{ACTOR, FORWARDED, named_actor};
use crate::app::auth::{Action, Actor};
use crate::app::problems;

/// Marks connections that were accepted on the server's own socket from root.
#[derive(Debug, Clone, Copy)]
pub struct FromLocalRoot;

/// Finds out who asks; who nobody knows gets no further.
pub async fn authenticate(
    State(context): State<Context>,
    mut request: Request,
    next: Next,
) -> Response {
    match find_actor(&context, &request) {
        Err(problem) => ApiError(problem).into_response(),
        Ok(Some(actor)) => {
            request.extensions_mut().insert(actor);
            next.run(request).await
        }
        Ok(None) => {
            let challenge = [(header::WWW_AUTHENTICATE, "Bearer realm=\"basin\"")];
            (challenge, ApiError(problems::unauthenticated())).into_response()
        }
    }
}

/// Root by the socket; whom another server names; or the token's owner.
fn find_actor(context: &Context, request: &Request) -> Result<Option<Actor>, Problem> {
    let headers = request.headers();
    if request.extensions().get::<FromServer>().is_some()
        && let Some(actor) = named_actor(headers)?
    {
        return Ok(Some(actor));
    }
    if request.extensions().get::<FromServer>().is_none() {
        // Refused, not passed over: whoever sends it means to be somebody else.
        let theirs = [ACTOR, FORWARDED].into_iter().find(|name| headers.contains_key(name));
        if let Some(name) = theirs {
            return Err(problems::only_servers(name.as_str()));
        }
    }
    if request.extensions().get::<FromLocalRoot>().is_some() {
        return Ok(Some(Actor::Root));
    }
    Ok(bearer(request).and_then(|secret| context.app.authenticate(secret)))
}

fn bearer(request: &Request) -> Option<&str> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, secret) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(secret.trim())
}

/// A right that an endpoint asks for.
pub trait Right: Send + Sync {
    const ACTION: Action;
}

macro_rules! rights {
    ($($name:ident),*) => {$(
        #[doc = concat!("[`Action::", stringify!($name), "`].")]
        pub struct $name;
        impl Right for $name {
            const ACTION: Action = Action::$name;
        }
    )*};
}

rights!(View, Operate, Configure, Administer);

/// The request was allowed to do what the right says.
pub struct Allow<R: Right>(PhantomData<R>);

impl<R: Right> FromRequestParts<Context> for Allow<R> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, context: &Context) -> Result<Self, ApiError> {
        let actor = parts.extensions.get::<Actor>().ok_or_else(problems::unauthenticated)?;
        context.authorizer.check(actor, R::ACTION)?;
        Ok(Allow(PhantomData))
    }
}

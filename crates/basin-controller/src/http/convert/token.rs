//! Tokens, without what is kept of their secrets.

use basin_api::token::{Role, Token};
use basin_store::records::Versioned;

use super::meta;
use crate::app::token as model;

pub fn token(record: &Versioned<model::Token>) -> Token {
    let token = &record.value;
    Token {
        meta: meta(token.id, &token.meta, record.revision),
        role: Role::Administrator,
        expires_at: token.expires_at.map(|t| t.to_string()),
    }
}

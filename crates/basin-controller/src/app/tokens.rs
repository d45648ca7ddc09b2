//! API tokens.

use basin_api::token::TokenCreate;
use basin_model::TokenId;
use basin_model::keys::{self, Kind};
use basin_model::task::Problem;
use basin_store::records::TxnBuilder;
use jiff::{SignedDuration, Timestamp};

use super::auth::Actor;
use super::token::{Token, hash, new_secret};
use super::{App, problems};
use crate::intake::meta;

/// A century: longer than any token should live, and far from overflow.
const LIFETIME_MAX: u64 = 100 * 366 * 24 * 3600;

impl App {
    /// Makes a token; its secret is in the answer and nowhere else.
    pub async fn create_token(&self, request: &TokenCreate) -> Result<(TokenId, String), Problem> {
        if request.expires_in_seconds.is_some_and(|s| s == 0 || s > LIFETIME_MAX) {
            return Err(problems::invalid("expires_in_seconds: it is from 1 to a century"));
        }
        let secret = new_secret();
        let id = self
            .commit(|snapshot, mint| {
                let labels = Default::default();
                let description = &request.description;
                let meta = meta::new(&snapshot.tokens, &request.name, description, &labels, mint)?;
                let lifetime =
                    request.expires_in_seconds.map(|s| SignedDuration::from_secs(s as i64));
                let token = Token {
                    id: TokenId::from_uuid(mint.uuid()),
                    meta,
                    secret_sha256: hash(&secret),
                    expires_at: lifetime.map(|l| mint.now + l),
                };
                let txn = TxnBuilder::new()
                    .create(Kind::Token.name(&token.meta.name), &token.id)
                    .create(keys::token(token.id), &token);
                Ok((token.id, txn))
            })
            .await?;
        Ok((id, secret))
    }

    pub async fn delete_token(&self, reference: &str) -> Result<(), Problem> {
        self.commit(|snapshot, _| {
            let token = snapshot.token(reference)?;
            let txn = TxnBuilder::new()
                .require_unchanged(token)
                .delete(keys::token(token.value.id))
                .delete(Kind::Token.name(&token.value.meta.name));
            Ok(((), txn))
        })
        .await
    }

    /// Who holds this secret, if anybody still does.
    pub fn authenticate(&self, secret: &str) -> Option<Actor> {
        let sought = hash(secret);
        let now = Timestamp::now();
        let snapshot = self.inventory().read();
        let tokens = snapshot.tokens.values().map(|t| &t.value);
        let found = tokens.filter(|t| t.is_valid(now)).find(|t| t.secret_sha256 == sought)?;
        Some(Actor::Token { id: found.id, name: found.meta.name.to_string() })
    }
}

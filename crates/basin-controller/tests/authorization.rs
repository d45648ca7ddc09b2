//! No endpoint answers who it does not know, nor who has no right: found by
//! asking every one in the OpenAPI document.

mod common;

use std::sync::Arc;

use axum::http::StatusCode;
use basin_controller::app::auth::{Action, Actor, Authorizer};
use common::DataCentre;
use serde_json::{Value, json};

/// Lets nobody do anything.
struct Nobody;

impl Authorizer for Nobody {
    fn allows(&self, _: &Actor, _: Action) -> bool {
        false
    }
}

fn endpoints() -> Vec<(String, String)> {
    let document = serde_json::to_value(basin_controller::http::openapi()).unwrap();
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let concrete: String = path
            .split('/')
            .map(|part| if part.starts_with('{') { "x" } else { part })
            .collect::<Vec<_>>()
            .join("/");
        for method in item.as_object().unwrap().keys() {
            all.push((method.to_uppercase(), concrete.clone()));
        }
    }
    assert!(all.len() > 40, "the document has {} endpoints", all.len());
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_in_without_a_token() {
    let centre = DataCentre::open().await;
    for (method, path) in endpoints() {
        for secret in [None, Some("basin_wrong"), Some("")] {
            let answer = centre.ask_as(secret, &method, &path).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{method} {path} {secret:?}");
        }
    }
    centre.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_endpoint_asks_for_a_right() {
    let centre = DataCentre::with(Arc::new(Nobody)).await;
    for (method, path) in endpoints() {
        let answer = centre.ask(&method, &path, None).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{method} {path}: {}", answer.text);
    }
    centre.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_works_until_it_is_revoked() {
    let centre = DataCentre::open().await;
    let made = centre.ask("POST", "/v1/tokens", Some(json!({"name": "ci"}))).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    let made: Value = made.value();
    let secret = made["secret"].as_str().unwrap();
    assert_eq!(centre.ask_as(Some(secret), "GET", "/v1/vms").await.status, StatusCode::OK);
    let listed = centre.ask("GET", "/v1/tokens", None).await;
    assert!(!listed.text.contains(secret), "the secret is shown once only");
    let stored = centre.store.list("/basin/").await.unwrap().entries;
    let leaks = |e: &basin_store::Entry| String::from_utf8_lossy(&e.value).contains(secret);
    assert!(!stored.iter().any(leaks), "the store keeps no secret");
    centre.ask("DELETE", "/v1/tokens/ci", None).await;
    let after = centre.ask_as(Some(secret), "GET", "/v1/vms").await;
    assert_eq!(after.status, StatusCode::UNAUTHORIZED);
    centre.close().await;
}

//! The committed OpenAPI document is the one that the code makes.

#[test]
fn the_committed_document_is_fresh() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi/basin-v1.json");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    let made = basin_controller::http::openapi_json();
    assert!(committed == made, "openapi/basin-v1.json is out of date: run 'make openapi'");
}

#[test]
fn every_operation_says_what_it_answers_with() {
    let document = serde_json::to_value(basin_controller::http::openapi()).unwrap();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let summary = operation["summary"].as_str().unwrap_or_default();
            assert!(!summary.is_empty(), "{method} {path} has no summary");
            let responses = operation["responses"].as_object().unwrap();
            assert!(!responses.is_empty(), "{method} {path} has no response");
        }
    }
}

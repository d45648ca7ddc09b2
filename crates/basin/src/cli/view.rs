//! How a resource looks to people: a row of a list, a sheet of its own.

use basin_api::client::Resource;
use basin_api::reference::{Meta, Reference};
use jiff::Timestamp;

use super::table::Sheet;
use super::text::age;

/// A noun that can be shown. Its impl is in the noun's file.
pub trait View: Resource {
    const COLUMNS: &[&str];
    /// The name people know it by.
    fn label(&self) -> &str;
    fn row(&self, now: Timestamp) -> Vec<String>;
    fn sheet(&self, now: Timestamp) -> Sheet;
}

/// The beginning of every sheet.
pub fn meta_sheet(meta: &Meta, now: Timestamp) -> Sheet {
    let mut sheet = Sheet::default();
    sheet.pair("Name", &meta.name).pair("Id", &meta.id);
    if !meta.description.is_empty() {
        sheet.pair("Description", &meta.description);
    }
    if !meta.labels.is_empty() {
        let labels: Vec<_> = meta.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        sheet.pair("Labels", labels.join(" "));
    }
    let created = format!("{} ({} ago)", meta.created_at, age(now, &meta.created_at));
    sheet.pair("Created", created);
    sheet
}

/// A thing's name, or its id where it is gone.
pub fn name(reference: &Reference) -> String {
    reference.name.clone().unwrap_or_else(|| format!("{} (gone)", reference.id))
}

/// An enum of the API as it stands in JSON, without the underscores.
pub fn word<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word.replace('_', "-"),
        _ => "?".to_owned(),
    }
}

//! From what Basin knows to what it says over HTTP: the one place that knows both.

pub mod datastore;
pub mod host;
pub mod image;
pub mod labels;
pub mod network;
pub mod task;
pub mod token;
pub mod usage;
pub mod vm;
pub mod volume;

use basin_api::reference::{Meta, Reference};
use basin_store::Revision;
use std::fmt::Display;

fn meta(id: impl Display, meta: &basin_model::Meta, revision: Revision) -> Meta {
    Meta {
        id: id.to_string(),
        name: meta.name.to_string(),
        description: meta.description.clone(),
        labels: meta.labels.clone().into(),
        created_at: meta.created_at.to_string(),
        revision: revision.0,
    }
}

fn reference(id: impl Display, name: Option<&basin_model::Name>) -> Reference {
    Reference { id: id.to_string(), name: name.map(ToString::to_string) }
}

//! What Basin speaks over HTTP, and a client that speaks it.
//!
//! Wire types are not the types that Basin works with inside: these promise
//! compatibility to scripts, those do not, and one place (`basin-controller`'s
//! `http::convert`) is the only one to know both.
//!
//! Conventions: sizes are in bytes and say so in their names; times are RFC 3339
//! in UTC; a reference to another thing is its name or its id; an unknown field
//! in a request is refused, not ignored.

pub mod client;
pub mod cluster;
pub mod datastore;
pub mod event;
pub mod host;
pub mod image;
pub mod network;
pub mod problem;
pub mod reference;
pub mod task;
pub mod token;
pub mod vm;
pub mod volume;

pub use problem::Problem;

//! What happens once in a data centre: the API, and everything that is decided.
//!
//! Follow one noun inwards: `http/vms.rs` takes the request, [`intake`] turns it
//! into a draft without any effect, [`app`] commits the draft or starts a
//! workflow, [`workflows`] carry out what takes long, and `basin-node` does on a
//! server what the store says it should.

pub mod app;
pub mod cluster;
pub mod http;
pub mod intake;
pub mod workflow;
pub mod workflows;

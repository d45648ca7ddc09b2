//! Pure. etcd's messages, as its public protocol numbers them; only what Basin uses.
//!
//! Declared here and not generated, so that no build needs a protocol compiler
//! (`docs/decisions/0100`). Fields that Basin does not read are left out: protobuf
//! skips what is not declared.

mod admin;
mod kv;
mod watch;

pub(crate) use admin::*;
pub(crate) use kv::*;
pub(crate) use watch::*;

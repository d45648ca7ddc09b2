//! The store: where desired and observed state live (DESIGN D4).
//!
//! One trait with etcd's semantics and several implementations, all held to one
//! conformance suite. What does not fit etcd does not go into the trait.
//!
//! - [`Store`]: the trait. [`mem`], [`sqlite`]: who implements it.
//! - `conformance`: what every implementation is held to.
//! - [`records`]: typed values over it, with a layout version in each.
//! - `state`, `shared`: what both implementations have in common.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod mem;
pub mod records;
mod shared;
pub mod sqlite;
mod state;
mod store;

pub use mem::MemStore;
pub use sqlite::SqliteStore;
pub use store::{
    Change, Commit, Compare, Entry, LeaseId, Listing, Op, Revision, Store, StoreError, Txn, Watch,
};

#[cfg(test)]
mod conformance_tests;

//! The store: where desired and observed state live (DESIGN D4).
//!
//! One trait with etcd's semantics and several implementations, all held to one
//! conformance suite. What does not fit etcd does not go into the trait.
//!
//! - [`Store`]: the trait. [`mem`], [`sqlite`], [`etcd`]: who implements it.
//! - [`Fanout`]: one watch of a store, for all who watch in a process.
//! - `conformance`: what every implementation is held to.
//! - [`records`]: typed values over it, with a layout version in each.
//! - [`copy_all`]: one store's records into another.
//! - `state`, `shared`: what memory and SQLite have in common.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod copy;
pub mod etcd;
mod fanout;
pub mod mem;
pub mod records;
mod shared;
pub mod sqlite;
mod state;
mod store;

pub use copy::{Copied, copy_all};
pub use etcd::EtcdStore;
pub use fanout::Fanout;
pub use mem::MemStore;
pub use sqlite::SqliteStore;
pub use store::{
    Change, Commit, Compare, Entry, LeaseId, Listing, Op, Revision, Store, StoreError, Txn, Watch,
};

// The etcd of the tests is theirs and the suite's.
#[cfg(test)]
extern crate self as basin_store;

#[cfg(test)]
#[path = "../tests/etcd/server.rs"]
mod etcd_server;

#[cfg(test)]
mod conformance_tests;

//! The store: where desired and observed state live (DESIGN D4).
//!
//! One trait with etcd's semantics and several implementations, all held to one
//! conformance suite. What does not fit etcd does not go into the trait.

mod store;

pub use store::{
    Change, Commit, Compare, Entry, LeaseId, Listing, Op, Revision, Store, StoreError, Txn, Watch,
};

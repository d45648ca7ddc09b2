//! etcd on this server: a member of the cluster's store, as a process that Basin keeps.
//!
//! - `config`: how it is set up (pure). `process`: started, found again, ended.
//! - `member`: keeps it running. `restore`: begins a cluster from a backup.
//! - `clear`: takes away what is not this server's any more.
//! - [`plan`]: which servers should have one (pure).

mod clear;
mod config;
mod member;
pub mod plan;
mod process;
mod restore;

pub use clear::{clear, end};
pub use config::{Beginning, MemberConfig, MemberTls, Peer};
pub use member::{EtcdMember, MemberState};
pub use restore::restore;

//! etcd on this server: a member of the cluster's store, as a process that Basin keeps.
//!
//! - `config`: how it is set up (pure). `process`: started, found again, ended.
//! - `member`: keeps it running. `restore`: begins a cluster from a backup.
//! - `end`: of one that is nobody's any more.
//! - [`plan`]: which servers should have one (pure). [`steward`]: carries that out, on
//!   the leader. `resident`: has one here or not, as the list of members says.
//! - `voters`: who has a vote by that list (pure).

mod config;
mod end;
mod member;
pub mod plan;
mod process;
mod resident;
mod restore;
pub mod steward;
mod voters;

pub use config::{Beginning, MemberConfig, MemberTls, Peer};
pub use end::end;
pub use member::{EtcdMember, MemberState};
pub use resident::Resident;
pub use restore::restore;
pub use steward::Steward;
pub use voters::{Voters, voters};

//! Pure. The nouns of Basin, as every other crate speaks of them.
//!
//! Desired state is what the API wrote; observed state is what the server that
//! owns the thing reports (DESIGN D5). The two are separate types, stored under
//! separate keys, and written by separate parties:
//!
//! | noun       | desired, written by the API        | observed, written by the owner |
//! |------------|------------------------------------|--------------------------------|
//! | VM         | [`vm::Vm`]                         | [`vm::VmStatus`]               |
//! | host       | [`host::Host`]                     | [`host::HostStatus`]           |
//! | others     | one record that workflows advance  |                                |
//!
//! These types are what the store holds. What travels over HTTP is `basin-api`.

pub mod cluster;
pub mod datastore;
pub mod hardware;
pub mod host;
pub mod ids;
pub mod image;
pub mod keys;
pub mod meta;
pub mod name;
pub mod network;
pub mod task;
pub mod units;
pub mod vlan;
pub mod vm;
pub mod volume;

pub use ids::{DatastoreId, HostId, ImageId, NetworkId, NicId, TaskId, TokenId, VmId, VolumeId};
pub use meta::Meta;
pub use name::{Labels, Name};
pub use units::{Bytes, BytesPerSecond, Generation, MacAddr, Vcpus};

//! `basin blockd`: serves every disk of a server's VMs as vhost-user-blk (DESIGN D8).
//!
//! A process of its own, so that a restart of the daemon never touches I/O.
//! [`control`] is what the daemon says to it, [`client`] how; [`run`] is the process.
//!
//! ```text
//! server ─ registry ─┬─ vhost::front   one thread a disk: the front end's messages
//!                    ├─ worker         a few threads: all queues of all disks
//!                    │    ├─ request   ring -> checked request (pure)
//!                    │    └─ io        raw (io_uring), qcow2 (lane), locks
//!                    ├─ nbd            disks for other servers, over TLS
//!                    └─ mirror         a disk that is kept the same on another server
//! ```

pub mod client;
pub mod control;
mod disk;
mod generation;
mod io;
mod mirror;
mod nbd;
mod registry;
pub mod request;
mod server;
mod stats;
mod vhost;
mod worker;

pub use server::{BlockdConfig, run};

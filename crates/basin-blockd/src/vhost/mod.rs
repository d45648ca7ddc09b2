//! The front end's side: vhost-user over a unix socket, one front end a disk.

mod activate;
pub mod arriving;
pub mod config;
mod device;
pub mod front;
pub mod handler;
pub mod inflight;
pub mod log;
pub mod memory;
pub mod peer;
pub mod vring;

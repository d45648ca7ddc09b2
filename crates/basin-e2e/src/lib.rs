//! Servers to test: the released binary in network namespaces, with real guests.
//!
//! ```no_run
//! use basin_e2e::{Server, images};
//!
//! let server = Server::start();
//! let guest = server.create(&server.micro("m1", basin_api::vm::Machine::Q35));
//! guest.start();
//! let mut console = guest.console();
//! console.expect("micro# ");
//! console.run("ping -c1 10.80.0.1");
//! # let _ = images::debian_disk();
//! ```
//!
//! A test talks to a server as its users do: the `basin` binary, the HTTP API, the
//! guest's console, the network. Whatever fails panics at the test's own line, and
//! the server's log is printed then. A [`Server`] takes everything with it when it
//! is dropped: processes, cgroups, network namespaces, mounts, files.
//!
//! Several servers are a [`Cluster`]: each has a cable to one network, and cables can
//! be pulled, cut or slow. What a guest's heartbeats tell is in [`observe`].
//!
//! `BASIN_BIN` names the binary, `BASIN_GUEST_IMAGES` the directory with the guests
//! (docs/guest-images.md); `cargo xtask test` sets both.

pub mod bench;
mod clock;
mod cluster;
mod console;
mod faults;
mod guest;
pub mod images;
mod mounts;
pub mod observe;
mod outside;
mod physical;
mod place;
pub mod process;
pub mod raw;
mod server;
mod start;
mod traces;
mod wait;

pub use cluster::{Cluster, Fabric, GATEWAY, Slow};
pub use console::Console;
pub use guest::Guest;
pub use mounts::free;
pub use outside::Outside;
pub use physical::Physical;
pub use place::Place;
pub use server::{Cli, Server};
pub use start::Setup;
pub use wait::{BOOT, SOON, eventually, until};

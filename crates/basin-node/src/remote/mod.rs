//! Servers reach each other: HTTP/2 over mutual TLS on the API's own port.
//!
//! [`serve`] accepts people and servers alike; [`Peers`] dials the others and keeps
//! the connections; [`RemoteNode`] is another server's [`crate::NodeApi`] over one of
//! those, and [`router`] the other end of it. A method is added in two places: its
//! impl of `Method` in `methods.rs` with its line in `router`, and its line in
//! `node.rs`.

mod body;
mod call;
mod connect;
mod console;
mod image;
mod io;
mod join;
mod listen;
mod long;
mod methods;
mod node;
mod peer;
mod router;
mod trouble;
mod turns;
mod upload;

pub use body::{PeerBody, full};
pub use call::refuse;
pub use join::ask_to_join;
pub use listen::{Tls, serve};
pub use node::RemoteNode;
pub use peer::{Peer, PeerAddress, Peers};
pub use router::router;

/// Where a server's node answers other servers.
pub const PATH: &str = "/internal/v1/node";

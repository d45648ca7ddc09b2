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
mod moves;
mod node;
mod peer;
mod router;
mod trouble;
mod turns;
mod upload;

pub use body::{PeerBody, full};
pub use call::refuse;
pub use join::{ask_for_store, ask_to_join, ask_to_renew, ask_whether_leads, ask_whether_removed};
pub use listen::{Tls, serve};
pub use node::RemoteNode;
pub use peer::{Peer, PeerAddress, Peers};
pub use router::router;

/// How much of one call may lie unread at its end.
const CALL_WINDOW: u32 = 256 << 10;
/// All calls between two servers share a connection. It has no bound of its own: a few
/// calls that nobody reads would use it up, and hold up all others.
const CONNECTION_WINDOW: u32 = i32::MAX as u32;

/// Where a server's node answers other servers.
pub const PATH: &str = "/internal/v1/node";

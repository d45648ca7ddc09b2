//! Disks that other servers use, over NBD with TLS on both sides.
//!
//! ```text
//! service ─ listener ─ session   one task a connection: negotiation, requests
//!              │          └─ grants  who may use what
//!              └─ tls            one CA, a certificate a server
//! client                        what the mirror speaks to another server's blockd
//! ```
//!
//! All of it runs on a small runtime of its own, which starts with the first
//! certificates. The workers of the data path share nothing with it: disk I/O for
//! others is blocking calls on the runtime's threads.

pub mod client;
pub mod grants;
mod listener;
mod negotiate;
pub mod proto;
pub mod service;
mod session;
#[cfg(test)]
mod tests;
pub mod tls;

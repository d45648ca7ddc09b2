//! `basin blockd`: serves every disk of a server's VMs as vhost-user-blk (DESIGN D8).
//!
//! A process of its own, so that a restart of the daemon never touches I/O.
//! [`control`] is what the daemon says to it.

pub mod control;

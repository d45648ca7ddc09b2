//! The fabric on a real kernel, each test in network namespaces of its own.

mod crash;
mod guard;
mod host;
mod moves;
mod packet;
mod scale;
mod serve;
mod server;
mod servers;
mod span;
mod underlay;
mod vlan;

//! The fabric on a real kernel, each test in network namespaces of its own.

mod crash;
mod guard;
mod host;
mod packet;
mod serve;
mod server;

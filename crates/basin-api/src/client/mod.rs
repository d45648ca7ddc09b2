//! A client of the API, over the server's unix socket or over HTTPS.
//!
//! [`Client`] is cheap to clone. What all resources have in common (list, get,
//! create, patch, delete) is generic over [`Resource`]; what only one noun can do is
//! in that noun's file. Long operations answer with a task: see [`Client::wait_task`].

mod cluster;
mod connect;
mod console;
mod error;
mod events;
mod request;
mod resource;
mod retry;
mod sse;
mod tasks;
mod uploads;
mod vms;
mod volumes;

pub use connect::{Client, Settings};
pub use console::{Console, ConsoleInput, ConsoleOutput};
pub use error::ClientError;
pub use events::Events;
pub use resource::{Creatable, Deletable, Patchable, Readable, Resource};
pub use tasks::Progress;
pub use vms::{DeleteVm, VmAction};

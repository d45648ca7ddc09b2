//! The machine engine: runs one virtual machine as one process.
//!
//! [`Engine`] and [`Machine`] are the seam. `qemu` is the real one, `fake` the
//! one for tests at scale.

mod console;
mod engine;
pub mod fake;
mod hardware;
pub mod migrate;
pub mod probe;
pub mod qemu;

pub use engine::{
    Adopted, BalloonStats, BootSpec, CdromSpec, ConsoleIo, ConsoleStream, DiskSpec, Engine,
    EngineError, GuestInfo, Machine, MachineEvent, MachineSpec, MachineState, NicSpec,
};
pub use hardware::{Flash, Hardware};

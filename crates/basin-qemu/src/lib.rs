//! The machine engine: runs one virtual machine as one process.
//!
//! [`Engine`] and [`Machine`] are the seam. `qemu` is the real one, `fake` the
//! one for tests at scale.

mod engine;

pub use engine::{
    Adopted, BalloonStats, BootSpec, CdromSpec, ConsoleStream, DiskSpec, Engine, EngineError,
    GuestInfo, Machine, MachineEvent, MachineSpec, MachineState, NicSpec,
};

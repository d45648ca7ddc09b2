//! What a restarted daemon knows of a machine: `machine.json`, written before the process
//! starts. Which process it is, the cgroup tells; what it does, QEMU tells.

use std::fs;
use std::io;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::files;
use crate::engine::MachineSpec;
use crate::hardware::Hardware;
use crate::migrate::Channel;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Of this layout.
    pub version: u32,
    pub spec: MachineSpec,
    pub uid: u32,
    pub accelerator: String,
    /// Absent where an older Basin started the machine.
    #[serde(default)]
    pub hardware: Option<Hardware>,
    /// It was launched to wait for its guest.
    #[serde(default)]
    pub incoming: Option<Channel>,
    pub started_at: Timestamp,
}

impl Record {
    pub const VERSION: u32 = 1;

    pub fn write(&self, path: &Path) -> io::Result<()> {
        files::replace(path, &serde_json::to_vec_pretty(self).map_err(io::Error::other)?)
    }

    pub fn read(path: &Path) -> io::Result<Record> {
        let record: Record = serde_json::from_slice(&fs::read(path)?).map_err(io::Error::other)?;
        if record.version != Record::VERSION {
            let why = format!("its layout is {}, not {}", record.version, Record::VERSION);
            return Err(io::Error::other(why));
        }
        Ok(record)
    }
}

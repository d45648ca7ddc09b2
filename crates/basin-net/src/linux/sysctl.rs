//! Kernel settings under `/proc/sys/net`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::fabric::NetError;

fn full(path: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(path)
}

/// None when the kernel has no such setting (IPv6 left out, an interface gone).
pub fn get(path: &str) -> Option<u8> {
    fs::read_to_string(full(path)).ok()?.trim().parse().ok()
}

/// A setting that does not exist needs no setting.
pub fn set(path: &str, value: u8) -> Result<(), NetError> {
    match fs::write(full(path), format!("{value}\n")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|e| NetError::Refused {
            what: format!("setting net/{path} to {value}"),
            why: e.to_string(),
        }),
    }
}

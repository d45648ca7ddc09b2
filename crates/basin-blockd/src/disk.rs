//! A disk as its queues, its front end and the control socket share it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use basin_model::{Bytes, VolumeId};

use crate::control::Export;
use crate::io::{self, Block, DiskError};
use crate::request::Limits;
use crate::stats::Counters;

pub struct Disk {
    pub volume: VolumeId,
    pub block: Box<dyn Block>,
    pub read_only: bool,
    pub queues: u16,
    /// Padded with zeros.
    pub serial: [u8; 20],
    pub counters: Counters,
    is_stalled: AtomicBool,
    stalled: Mutex<Option<String>>,
}

impl Disk {
    pub fn open(export: &Export) -> Result<Disk, DiskError> {
        let mut serial = [0; 20];
        let n = export.serial.len().min(serial.len());
        serial[..n].copy_from_slice(&export.serial.as_bytes()[..n]);
        Ok(Disk {
            volume: export.volume,
            block: io::open(&export.layers, export.read_only)?,
            read_only: export.read_only,
            queues: export.queues,
            serial,
            counters: Counters::default(),
            is_stalled: AtomicBool::new(false),
            stalled: Mutex::default(),
        })
    }

    pub fn limits(&self) -> Limits {
        Limits { capacity: self.block.size(), read_only: self.read_only }
    }

    pub fn size(&self) -> Bytes {
        Bytes(self.block.size())
    }

    pub fn stalled(&self) -> Option<String> {
        self.stalled.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A cheap look for the data path.
    pub fn is_stalled(&self) -> bool {
        self.is_stalled.load(Ordering::Relaxed)
    }

    /// Requests wait, or no longer.
    pub fn set_stalled(&self, why: Option<&str>) {
        let mut stalled = self.stalled.lock().unwrap_or_else(PoisonError::into_inner);
        if stalled.as_deref() != why {
            match why {
                Some(why) => tracing::warn!(volume = %self.volume, why, "requests wait"),
                None => tracing::info!(volume = %self.volume, "requests go on"),
            }
            *stalled = why.map(str::to_owned);
            self.is_stalled.store(why.is_some(), Ordering::Relaxed);
        }
    }

    /// An I/O error went to the guest. Logged at 1, 2, 4, 8, ... so that a dead
    /// device does not fill the log.
    pub fn failed(&self, what: &str, why: &dyn std::fmt::Display) {
        let count = self.counters.failed();
        if count.is_power_of_two() {
            tracing::warn!(volume = %self.volume, what, %why, count, "request failed");
        }
    }
}

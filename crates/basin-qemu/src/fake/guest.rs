//! What a test makes a guest, or the process around it, do.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use basin_model::{Bytes, BytesPerSecond};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::machine::FakeMachine;
use crate::engine::{BalloonStats, GuestInfo, Machine, MachineEvent, MachineSpec, MachineState};

/// The guest of one machine. Still valid, and without effect, when the process is gone.
pub struct FakeGuest(Arc<FakeMachine>);

impl FakeGuest {
    pub(super) fn new(machine: Arc<FakeMachine>) -> FakeGuest {
        FakeGuest(machine)
    }

    pub fn spec(&self) -> &MachineSpec {
        &self.0.spec
    }

    pub fn state(&self) -> MachineState {
        self.0.current()
    }

    /// The guest turns itself off.
    pub fn shutdown(&self) {
        let event = MachineEvent::Shutdown { by_guest: true };
        self.0.turn(Some(MachineState::Shutdown), event);
    }

    /// The guest reboots itself.
    pub fn reboot(&self) {
        self.0.turn(None, MachineEvent::Reset { by_guest: true });
    }

    /// The guest's kernel panics.
    pub fn panic(&self) {
        self.0.turn(Some(MachineState::Crashed), MachineEvent::Panicked);
    }

    /// The guest hangs and its watchdog fires.
    pub fn watchdog(&self) {
        self.0.turn(Some(MachineState::Crashed), MachineEvent::Watchdog);
    }

    /// The process ends.
    pub fn die(&self, detail: &str) {
        self.0.die(detail);
    }

    /// Whether the power button shuts the guest down; it does at first.
    pub fn obey_power_button(&self, obeys: bool) {
        self.0.state().obeys_power_button = obeys;
    }

    /// How fast it writes to its memory, for a migration.
    pub fn set_dirty_rate(&self, rate: BytesPerSecond) {
        self.0.state().side.dirty_rate = rate;
    }

    /// QEMU stops answering (or answers again); [`Machine::kill`] still works.
    pub fn stick(&self, stuck: bool) {
        self.0.state().stuck = stuck;
    }

    pub fn set_info(&self, info: Option<GuestInfo>) {
        self.0.state().info = info;
    }

    pub fn set_balloon(&self, stats: BalloonStats) {
        self.0.state().balloon = stats;
    }

    pub fn set_usage(&self, cpu_time: Duration, resident: Bytes) {
        let mut state = self.0.state();
        state.cpu_time = cpu_time;
        state.resident = resident;
    }

    /// Writes to the console: to its log where the world has a directory, and to whoever
    /// has it open.
    pub async fn say(&self, bytes: &[u8]) -> io::Result<()> {
        let log = self.0.console_log();
        if log.parent().is_some_and(|dir| dir.exists()) {
            std::fs::OpenOptions::new().create(true).append(true).open(log)?.write_all(bytes)?;
        }
        let mut out = self.0.guest_out.lock().await;
        if let Some(stream) = out.as_mut()
            && stream.write_all(bytes).await.is_err()
        {
            // Closed by the reader: a serial line loses what nobody reads.
            *out = None;
        }
        Ok(())
    }

    /// The next `len` bytes somebody typed into the console.
    pub async fn hear(&self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        match self.0.guest_in.lock().await.as_mut() {
            Some(stream) => stream.read_exact(&mut bytes).await?,
            None => return Err(io::Error::new(io::ErrorKind::NotConnected, "nobody has it open")),
        };
        Ok(bytes)
    }
}

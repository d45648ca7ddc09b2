//! A machine in hand: its events turned into what [`decide`](super::decide) wants to know.

use std::sync::Arc;

use basin_model::Generation;
use basin_model::vm::FailureKind;
use basin_qemu::{EngineError, Machine, MachineEvent, MachineState};
use jiff::Timestamp;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use super::decide::{News, Seen};

/// See the module.
pub struct Hold {
    pub machine: Arc<dyn Machine>,
    pub generation: Generation,
    events: Receiver<MachineEvent>,
    /// As last told: kept when the machine does not answer.
    state: MachineState,
    pub pressed: Option<Timestamp>,
    pub reset_to: u64,
}

impl Hold {
    pub fn new(machine: Arc<dyn Machine>, generation: Generation, reset_to: u64) -> Hold {
        let events = machine.events();
        let state = MachineState::Running;
        Hold { machine, generation, events, state, pressed: None, reset_to }
    }

    /// Returns when the machine has done something, with that in `news`.
    pub async fn happened(&mut self, news: &mut News) {
        match self.events.recv().await {
            Ok(event) => note(news, event),
            Err(RecvError::Lagged(_)) => {}
            // The engine is done with it; the state tells.
            Err(RecvError::Closed) if self.state != MachineState::Gone => {
                self.state = MachineState::Gone;
            }
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }

    /// Asks how the machine is; false: it did not answer.
    pub async fn look(&mut self, news: &mut News) -> bool {
        let answer = self.machine.state().await;
        loop {
            match self.events.try_recv() {
                Ok(event) => note(news, event),
                Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        match answer {
            Ok(state) => self.state = state,
            Err(EngineError::Gone) => self.state = MachineState::Gone,
            Err(_) => return false,
        }
        true
    }

    pub fn gone(&self) -> bool {
        self.state == MachineState::Gone
    }

    pub fn seen(&self) -> Seen {
        Seen {
            generation: self.generation,
            state: self.state.clone(),
            process: self.machine.process(),
            pressed: self.pressed,
            reset_to: self.reset_to,
        }
    }
}

fn note(news: &mut News, event: MachineEvent) {
    match event {
        MachineEvent::Shutdown { by_guest: true } => news.guest_off = true,
        MachineEvent::Panicked => news.crash = Some(FailureKind::GuestPanic),
        MachineEvent::Watchdog => news.crash = Some(FailureKind::Watchdog),
        MachineEvent::Exited { detail } => news.died = Some(detail),
        MachineEvent::Reset { by_guest: true } => news.guest_reboots += 1,
        MachineEvent::Shutdown { by_guest: false }
        | MachineEvent::Reset { by_guest: false }
        | MachineEvent::Paused
        | MachineEvent::Resumed
        | MachineEvent::Switching
        | MachineEvent::Migration(_) => {}
    }
}

//! One machine of a [`FakeWorld`](super::FakeWorld).

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use basin_model::vm::QemuProcess;
use basin_model::{Bytes, VmId};
use jiff::Timestamp;
use tokio::io::{DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::broadcast;

use super::FakeWorld;
use super::migrate::Side;
use crate::console::{ConsoleLock, Guarded};
use crate::engine::{
    BalloonStats, ConsoleStream, EngineError, GuestInfo, Machine, MachineEvent, MachineSpec,
    MachineState,
};
use crate::hardware::Hardware;

pub(super) struct FakeMachine {
    pub(super) spec: MachineSpec,
    pub(super) hardware: Hardware,
    pub(super) world: FakeWorld,
    pid: u32,
    started_at: Timestamp,
    state: Mutex<State>,
    events: broadcast::Sender<MachineEvent>,
    console: ConsoleLock,
    pub(super) guest_out: tokio::sync::Mutex<Option<WriteHalf<DuplexStream>>>,
    pub(super) guest_in: tokio::sync::Mutex<Option<ReadHalf<DuplexStream>>>,
}

pub(super) struct State {
    pub(super) machine: MachineState,
    pub(super) balloon: BalloonStats,
    pub(super) info: Option<GuestInfo>,
    pub(super) cpu_time: Duration,
    pub(super) resident: Bytes,
    /// What the guest does when its power button is pressed.
    pub(super) obeys_power_button: bool,
    /// QEMU does not answer; only the kill works.
    pub(super) stuck: bool,
    pub(super) side: Side,
}

impl FakeMachine {
    pub(super) fn new(
        world: FakeWorld,
        spec: MachineSpec,
        hardware: Hardware,
        pid: u32,
    ) -> FakeMachine {
        let state = State {
            machine: MachineState::Running,
            balloon: BalloonStats { actual: spec.memory, ..BalloonStats::default() },
            info: None,
            cpu_time: Duration::ZERO,
            resident: Bytes::ZERO,
            obeys_power_button: true,
            stuck: false,
            side: Side::default(),
        };
        FakeMachine {
            spec,
            hardware,
            world,
            pid,
            started_at: Timestamp::now(),
            state: Mutex::new(state),
            events: broadcast::channel(16).0,
            console: ConsoleLock::default(),
            guest_out: tokio::sync::Mutex::new(None),
            guest_in: tokio::sync::Mutex::new(None),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn current(&self) -> MachineState {
        self.state().machine.clone()
    }

    pub(super) fn vm(&self) -> VmId {
        self.spec.vm
    }

    /// Moves to `to` and tells, unless the process is gone.
    pub(super) fn turn(&self, to: Option<MachineState>, event: MachineEvent) {
        let mut state = self.state();
        if state.machine == MachineState::Gone {
            return;
        }
        if let Some(to) = to {
            state.machine = to;
        }
        // Nobody listening is fine: events are from now on.
        let _ = self.events.send(event);
    }

    /// Tells something that changes no state.
    pub(super) fn tell(&self, event: MachineEvent) {
        self.turn(None, event);
    }

    /// The process ends.
    pub(super) fn exit(&self, detail: &str) {
        let exited = MachineEvent::Exited { detail: detail.to_owned() };
        self.turn(Some(MachineState::Gone), exited);
    }

    pub(super) fn die(&self, detail: &str) {
        self.world.remove(self.vm());
        self.exit(detail);
    }

    /// Runs `effect` on the live machine, after and before half the world's delay.
    pub(super) async fn operate<T>(
        &self,
        what: &'static str,
        effect: impl FnOnce(&Self, MachineState) -> Result<T, EngineError> + Send,
    ) -> Result<T, EngineError> {
        self.world.half_delay().await;
        let (machine, stuck) = {
            let state = self.state();
            (state.machine.clone(), state.stuck)
        };
        if machine == MachineState::Gone {
            return Err(EngineError::Gone);
        }
        if stuck {
            return Err(EngineError::Refused { what, why: "it did not answer in time".into() });
        }
        let result = effect(self, machine)?;
        self.world.half_delay().await;
        Ok(result)
    }
}

#[async_trait]
impl Machine for FakeMachine {
    fn process(&self) -> QemuProcess {
        QemuProcess {
            pid: self.pid,
            version: "fake".to_owned(),
            accelerator: "fake".to_owned(),
            started_at: self.started_at,
        }
    }

    async fn state(&self) -> Result<MachineState, EngineError> {
        match self.operate("tell its state", |_, state| Ok(state)).await {
            Err(EngineError::Gone) => Ok(MachineState::Gone),
            other => other,
        }
    }

    fn events(&self) -> broadcast::Receiver<MachineEvent> {
        self.events.subscribe()
    }

    async fn pause(&self) -> Result<(), EngineError> {
        self.operate("pause", |this, state| match state {
            MachineState::Running => {
                this.turn(Some(MachineState::Paused), MachineEvent::Paused);
                Ok(())
            }
            MachineState::Incoming | MachineState::Switching | MachineState::Migrated => {
                let why = format!("it is {state:?}");
                Err(EngineError::Refused { what: "pause", why })
            }
            _ => Ok(()),
        })
        .await
    }

    async fn resume(&self) -> Result<(), EngineError> {
        self.operate("resume", |this, state| match state {
            MachineState::Running => Ok(()),
            MachineState::Paused => {
                this.turn(Some(MachineState::Running), MachineEvent::Resumed);
                Ok(())
            }
            other => Err(EngineError::Refused {
                what: "resume",
                why: match other {
                    MachineState::Crashed | MachineState::Shutdown => {
                        format!("it is {other:?}; reset it first")
                    }
                    other => format!("it is {other:?}"),
                },
            }),
        })
        .await
    }

    async fn reset(&self) -> Result<(), EngineError> {
        self.operate("reset", |this, state| {
            if matches!(
                state,
                MachineState::Incoming | MachineState::Switching | MachineState::Migrated
            ) {
                let why = format!("it is {state:?}");
                return Err(EngineError::Refused { what: "reset", why });
            }
            let to = if state == MachineState::Paused { None } else { Some(MachineState::Running) };
            this.turn(to, MachineEvent::Reset { by_guest: false });
            Ok(())
        })
        .await
    }

    async fn press_power_button(&self) -> Result<(), EngineError> {
        self.operate("press its power button", |this, state| {
            let obeys = this.state().obeys_power_button;
            if obeys && state == MachineState::Running {
                let event = MachineEvent::Shutdown { by_guest: true };
                this.turn(Some(MachineState::Shutdown), event);
            }
            Ok(())
        })
        .await
    }

    async fn kill(&self) -> Result<(), EngineError> {
        self.world.half_delay().await;
        if self.current() != MachineState::Gone {
            self.die("killed");
        }
        self.world.half_delay().await;
        Ok(())
    }

    async fn balloon(&self) -> Result<BalloonStats, EngineError> {
        self.operate("tell its balloon", |this, _| Ok(this.state().balloon)).await
    }

    async fn set_balloon(&self, target: Bytes) -> Result<(), EngineError> {
        self.operate("set its balloon", |this, _| {
            this.state().balloon.actual = target.min(this.spec.memory);
            Ok(())
        })
        .await
    }

    async fn guest_info(&self) -> Option<GuestInfo> {
        self.operate("ask its agent", |this, _| Ok(this.state().info.clone())).await.ok()?
    }

    fn cpu_time(&self) -> Option<Duration> {
        let state = self.state();
        (state.machine != MachineState::Gone).then_some(state.cpu_time)
    }

    fn resident(&self) -> Option<Bytes> {
        let state = self.state();
        (state.machine != MachineState::Gone).then_some(state.resident)
    }

    async fn open_console(&self) -> Result<ConsoleStream, EngineError> {
        let what = "open its console";
        let guard = self
            .operate(what, |this, _| {
                let why = "it is open already".to_owned();
                this.console.take().ok_or(EngineError::Refused { what, why })
            })
            .await?;
        let (stream, guest) = tokio::io::duplex(64 << 10);
        let (read, write) = tokio::io::split(guest);
        *self.guest_in.lock().await = Some(read);
        *self.guest_out.lock().await = Some(write);
        Ok(Box::new(Guarded { stream, _guard: guard }))
    }

    fn console_log(&self) -> PathBuf {
        let dir = self.world.0.dir.clone().unwrap_or_else(|| PathBuf::from("/nonexistent"));
        dir.join(format!("{}.console.log", self.vm()))
    }
}

//! What a fake machine is told about its migration.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use basin_model::Bytes;
use tokio::time::Instant;

use super::machine::FakeMachine;
use super::migrate::Out;
use crate::engine::{EngineError, MachineEvent, MachineState};
use crate::hardware::Hardware;
use crate::migrate::{Limits, Migrate, MigrationPhase, MigrationStatus, Outgoing, Ram};

#[async_trait]
impl Migrate for FakeMachine {
    fn hardware(&self) -> Hardware {
        self.hardware.clone()
    }

    async fn migration(&self) -> Result<MigrationStatus, EngineError> {
        self.operate("tell its migration", |this, _| {
            let me = this.me()?;
            me.advance();
            let state = me.state();
            let side = &state.side;
            let mut status =
                MigrationStatus::of(side.phase.clone().unwrap_or(MigrationPhase::None));
            status.address = side.listens;
            if let Some(out) = &side.out {
                status.total_time = Some(out.begun.elapsed());
                status.ram = Some(Ram {
                    total: this.spec.memory,
                    remaining: out.remaining,
                    transferred: out.transferred,
                    dirty_rate: side.dirty_rate,
                    bandwidth: out.link.state().bandwidth,
                    passes: out.passes,
                    page_requests: 0,
                });
            }
            Ok(status)
        })
        .await
    }

    async fn listen(&self, address: IpAddr) -> Result<SocketAddr, EngineError> {
        let what = "listen for its guest";
        self.operate(what, |this, state| {
            if state != MachineState::Incoming {
                return Err(Self::refused(what, "it does not wait for a guest"));
            }
            if let Some(listens) = this.state().side.listens {
                return Ok(listens);
            }
            let me = Arc::downgrade(&this.me()?);
            let link = this.world.link();
            let listens = {
                let mut link = link.state();
                link.last_port += 1;
                let listens = SocketAddr::new(address, link.last_port);
                link.waiting.insert(listens, me);
                listens
            };
            let mut state = this.state();
            state.side.listens = Some(listens);
            state.side.phase = Some(MigrationPhase::Setup);
            Ok(listens)
        })
        .await
    }

    async fn announce(&self) -> Result<(), EngineError> {
        self.operate("announce its guest", |_, _| Ok(())).await
    }

    async fn listen_to_recover(&self, _: IpAddr) -> Result<SocketAddr, EngineError> {
        Err(Self::refused("listen for its guest again", "no connection is broken"))
    }

    async fn migrate(&self, outgoing: &Outgoing) -> Result<(), EngineError> {
        let what = "migrate";
        self.operate(what, |this, state| {
            if !matches!(state, MachineState::Running | MachineState::Paused) {
                return Err(Self::refused(what, &format!("it is {state:?}")));
            }
            let link = this.world.link();
            let target = link.state().waiting.get(&outgoing.to).and_then(Weak::upgrade);
            let now = Instant::now();
            let mut state = this.state();
            if state.side.out.is_some() {
                return Err(Self::refused(what, "a migration is under way"));
            }
            state.side.phase = Some(MigrationPhase::Setup);
            let agreed = target.as_ref().is_some_and(|target| {
                let expects = target.state().side.expects.clone();
                expects == Some((outgoing.key.clone(), outgoing.channel))
                    && target.spec.vm == this.spec.vm
                    && target.hardware == this.hardware
            });
            if !agreed {
                let why = "the target cannot be reached, or expects another guest".to_owned();
                state.side.phase = Some(MigrationPhase::Failed { why });
                return Ok(());
            }
            state.side.out = Some(Out {
                target: target.as_ref().map(Arc::downgrade).unwrap_or_default(),
                link,
                hold: outgoing.hold,
                limits: outgoing.limits,
                begun: now,
                seen: now,
                transferred: Bytes::ZERO,
                remaining: this.spec.memory,
                passes: 1,
                went_on: false,
                stuck: false,
                ran_before: true,
            });
            Ok(())
        })
        .await
    }

    async fn set_limits(&self, limits: &Limits) -> Result<(), EngineError> {
        self.operate("change its migration", |this, _| {
            if let Some(out) = this.state().side.out.as_mut() {
                out.limits = *limits;
            }
            Ok(())
        })
        .await
    }

    async fn continue_switchover(&self) -> Result<(), EngineError> {
        let what = "send the rest of its guest";
        self.operate(what, |this, _| {
            let me = this.me()?;
            if me.state().side.phase != Some(MigrationPhase::PreSwitchover) {
                return Err(Self::refused(what, "it does not wait for that"));
            }
            if let Some(out) = me.state().side.out.as_mut() {
                out.went_on = true;
            }
            me.advance();
            Ok(())
        })
        .await
    }

    async fn cancel_migration(&self) -> Result<(), EngineError> {
        let what = "cancel its migration";
        self.operate(what, |this, _| {
            let me = this.me()?;
            let phase = me.state().side.phase.clone().unwrap_or(MigrationPhase::None);
            if phase.is_over() {
                return Ok(());
            }
            if phase.is_committed() {
                return Err(Self::refused(what, "the guest may run at the target already"));
            }
            let out = me.state().side.out.take();
            if let Some(out) = out {
                if let Some(target) = out.target.upgrade()
                    && target.current() == MachineState::Incoming
                    && !out.link.state().cut
                {
                    target.die("the stream ended");
                }
                me.run_again(out.ran_before);
            }
            me.enter(MigrationPhase::Cancelled);
            Ok(())
        })
        .await
    }

    async fn start_postcopy(&self) -> Result<(), EngineError> {
        let what = "go over to post-copy";
        self.operate(what, |this, _| {
            let me = this.me()?;
            me.advance();
            let target = {
                let state = me.state();
                let out = state.side.out.as_ref();
                out.filter(|_| state.side.phase == Some(MigrationPhase::Active))
                    .and_then(|out| out.target.upgrade())
            };
            let Some(target) = target else {
                return Err(Self::refused(what, "it is not copying"));
            };
            if !target.state().side.expects.as_ref().is_some_and(|(_, c)| c.postcopy) {
                return Err(Self::refused(what, "the target was not prepared for it"));
            }
            me.turn(Some(MachineState::Switching), MachineEvent::Switching);
            me.enter(MigrationPhase::Postcopy);
            target.turn(Some(MachineState::Running), MachineEvent::Resumed);
            target.enter(MigrationPhase::Postcopy);
            Ok(())
        })
        .await
    }

    async fn pause_postcopy(&self) -> Result<(), EngineError> {
        Err(Self::refused("pause its post-copy", "there is none that hangs"))
    }

    async fn recover_postcopy(&self, _: SocketAddr) -> Result<(), EngineError> {
        Err(Self::refused("recover its post-copy", "no connection is broken"))
    }

    async fn reclaim(&self) -> Result<(), EngineError> {
        let what = "take its guest back";
        self.operate(what, |this, _| {
            let me = this.me()?;
            let state = me.current();
            match state {
                MachineState::Switching | MachineState::Migrated => {}
                MachineState::Running => return Ok(()),
                other => return Err(Self::refused(what, &format!("it is {other:?}"))),
            }
            if me.state().side.phase == Some(MigrationPhase::Postcopy) {
                return Err(Self::refused(what, "a part of it is at the target only"));
            }
            let unfinished = me.state().side.out.take().is_some();
            me.turn(Some(MachineState::Running), MachineEvent::Resumed);
            if unfinished {
                me.enter(MigrationPhase::Cancelled);
            }
            Ok(())
        })
        .await
    }
}

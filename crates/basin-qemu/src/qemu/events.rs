//! Pure. From QEMU's events and states to those of a machine.

use qapi::Enum;
use qapi::qmp::{Event, RunState, ShutdownCause};

use super::migrate::wire;
use crate::engine::{MachineEvent, MachineState};

/// Translates events in their order. QEMU says STOP after the event that stopped it; only
/// a STOP of its own is a pause. A STOP while the guest is on its way out is the migration's,
/// unless somebody asked for a pause just then.
#[derive(Debug, Default)]
pub struct Translator {
    stop_follows: bool,
    pub leaving: bool,
    /// Somebody asked for a pause, and it has not come yet.
    pub pause_asked: bool,
}

impl Translator {
    pub fn translate(&mut self, event: &Event) -> Option<MachineEvent> {
        match event {
            Event::SHUTDOWN { data, .. } => {
                self.stop_follows = true;
                Some(MachineEvent::Shutdown { by_guest: data.guest })
            }
            // A snapshot's or a migration's own resets are no reboot.
            Event::RESET { data, .. } if data.reason == ShutdownCause::subsystem_reset => None,
            Event::RESET { data, .. } => Some(MachineEvent::Reset { by_guest: data.guest }),
            Event::GUEST_PANICKED { .. } => {
                self.stop_follows = true;
                Some(MachineEvent::Panicked)
            }
            Event::WATCHDOG { .. } => {
                self.stop_follows = true;
                Some(MachineEvent::Watchdog)
            }
            Event::STOP { .. } if self.stop_follows => {
                self.stop_follows = false;
                None
            }
            Event::STOP { .. } if std::mem::take(&mut self.pause_asked) => {
                Some(MachineEvent::Paused)
            }
            Event::STOP { .. } if self.leaving => Some(MachineEvent::Switching),
            Event::STOP { .. } => Some(MachineEvent::Paused),
            Event::MIGRATION { data, .. } => {
                let phase = wire::phase(data.status.name(), String::new);
                if phase.is_over() {
                    self.leaving = false;
                }
                Some(MachineEvent::Migration(phase))
            }
            Event::RESUME { .. } => {
                self.stop_follows = false;
                Some(MachineEvent::Resumed)
            }
            _ => None,
        }
    }
}

/// What QEMU's run state means.
pub fn state(run: RunState) -> MachineState {
    match run {
        // A sleeping guest wakes by itself.
        RunState::running | RunState::suspended => MachineState::Running,
        RunState::guest_panicked | RunState::watchdog | RunState::internal_error => {
            MachineState::Crashed
        }
        RunState::shutdown => MachineState::Shutdown,
        RunState::inmigrate => MachineState::Incoming,
        RunState::finish_migrate => MachineState::Switching,
        RunState::postmigrate => MachineState::Migrated,
        _ => MachineState::Paused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::MigrationPhase;

    fn translate(lines: &[&str]) -> Vec<MachineEvent> {
        let mut translator = Translator::default();
        let stamp = r#""timestamp":{"seconds":1,"microseconds":2}"#;
        let events = lines.iter().map(|line| {
            serde_json::from_str::<Event>(&format!("{{{line},{stamp}}}")).expect("an event")
        });
        events.filter_map(|event| translator.translate(&event)).collect()
    }

    const STOP: &str = r#""event":"STOP""#;
    const RESUME: &str = r#""event":"RESUME""#;

    #[test]
    fn a_stop_is_a_pause_unless_something_else_stopped_it() {
        assert_eq!(translate(&[STOP, RESUME]), [MachineEvent::Paused, MachineEvent::Resumed]);
        let panic = r#""event":"GUEST_PANICKED","data":{"action":"pause"}"#;
        assert_eq!(translate(&[panic, STOP, STOP]), [MachineEvent::Panicked, MachineEvent::Paused]);
        let watchdog = r#""event":"WATCHDOG","data":{"action":"pause"}"#;
        assert_eq!(translate(&[watchdog, STOP]), [MachineEvent::Watchdog]);
    }

    #[test]
    fn the_stop_of_a_migration_is_no_pause() {
        let moved = |status: &str| format!(r#""event":"MIGRATION","data":{{"status":"{status}"}}"#);
        let told = |leaving, pause_asked| {
            let mut translator = Translator { leaving, pause_asked, ..Translator::default() };
            let stamp = r#""timestamp":{"seconds":1,"microseconds":2}"#;
            let mut told = Vec::new();
            for line in [STOP, &moved("completed"), STOP] {
                let event = serde_json::from_str(&format!("{{{line},{stamp}}}")).unwrap();
                told.extend(translator.translate(&event));
            }
            told
        };
        let completed = MachineEvent::Migration(MigrationPhase::Completed);
        let paused = MachineEvent::Paused;
        assert_eq!(told(true, false), [MachineEvent::Switching, completed.clone(), paused.clone()]);
        assert_eq!(told(true, true), [paused.clone(), completed.clone(), paused.clone()]);
        assert_eq!(told(false, false), [paused.clone(), completed, paused]);
    }

    #[test]
    fn who_ended_it_is_told() {
        let off = r#""event":"SHUTDOWN","data":{"guest":true,"reason":"guest-shutdown"}"#;
        assert_eq!(translate(&[off, STOP]), [MachineEvent::Shutdown { by_guest: true }]);
        let reset = |guest, reason| {
            format!(r#""event":"RESET","data":{{"guest":{guest},"reason":"{reason}"}}"#)
        };
        assert_eq!(
            translate(&[
                &reset("true", "guest-reset"),
                &reset("false", "host-qmp-system-reset"),
                &reset("false", "subsystem-reset"),
            ]),
            [MachineEvent::Reset { by_guest: true }, MachineEvent::Reset { by_guest: false }]
        );
    }
}

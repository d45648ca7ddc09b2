//! Pure. From QEMU's events and states to those of a machine.

use qapi::qmp::{Event, RunState, ShutdownCause};

use crate::engine::{MachineEvent, MachineState};

/// Translates events in their order. QEMU says STOP after the event that stopped it; only
/// a STOP of its own is a pause.
#[derive(Debug, Default)]
pub struct Translator {
    stop_follows: bool,
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
            Event::STOP { .. } => Some(MachineEvent::Paused),
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
        _ => MachineState::Paused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

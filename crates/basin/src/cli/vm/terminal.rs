//! The terminal in raw mode, and back, however the program ends.

use std::io::{IsTerminal as _, stdin};
use std::sync::{Mutex, Once, PoisonError};

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// The settings to return to, while the terminal is raw.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Keeps the terminal raw while it lives.
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    /// None when standard input is no terminal.
    pub fn enter() -> nix::Result<Option<RawMode>> {
        if !stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        restore_on_panic();
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let guard = RawMode(());
        tcsetattr(stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Some(guard))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        // There is nobody to tell when the terminal itself is gone.
        let _ = tcsetattr(stdin(), SetArg::TCSANOW, &before);
    }
}

/// A panic prints before anything is dropped, and should be readable.
fn restore_on_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            print(panic);
        }));
    });
}

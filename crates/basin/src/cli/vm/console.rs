//! `basin vm console`: the serial console, for people at a terminal and for scripts.

use std::io::{IsTerminal as _, Read as _};
use std::time::Duration;

use basin_api::client::{ConsoleInput, ConsoleOutput};
use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::terminal::RawMode;
use crate::cli::error::CliError;
use crate::cli::out;
use crate::cli::session::Session;
use crate::cli::text::{clean, parse_seconds};

/// Ctrl-], as in telnet and virsh.
const ESCAPE: u8 = 0x1d;

#[derive(Debug, Args)]
#[command(after_help = "It begins with what the console has shown before. Ctrl-] leaves; the VM \
does not notice.

With input that is no terminal it leaves once all of it is sent and the guest has been
silent for a while:
  printf 'root\\nuname -a\\n' | basin vm console web --linger 5s")]
pub struct ConsoleArgs {
    vm: String,
    /// How long the guest has to be silent after the end of piped input
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_seconds)]
    linger: u64,
}

/// Why a console is left.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Escape,
    /// The guest fell silent after the end of the input.
    Silence,
    Closed,
    Signal,
}

impl ConsoleArgs {
    pub async fn run(self, session: &Session) -> Result<(), CliError> {
        let console = session.client.console(&self.vm).await?;
        let at_terminal = std::io::stdin().is_terminal();
        if at_terminal {
            eprintln!("Console of {}; leave with Ctrl-].", clean(&self.vm));
        }
        // Caught before the terminal is raw, so that no signal leaves it so.
        let mut signals = Signals::catch()
            .map_err(|e| CliError::failed(format!("cannot handle signals: {e}"), ""))?;
        let raw = RawMode::enter()
            .map_err(|e| CliError::failed(format!("cannot use this terminal: {e}"), ""))?;
        let (mut input, output) = (console.input, console.output);
        let linger = Duration::from_secs(self.linger);
        let end = tokio::select! {
            end = carry(&mut input, output, raw.is_some(), linger) => end,
            () = signals.any() => Ok(End::Signal),
        };
        drop(raw);
        input.close().await;
        match end? {
            End::Silence => Ok(()),
            End::Escape => {
                eprintln!("\nLeft the console; the VM is as it was.");
                Ok(())
            }
            End::Closed => {
                eprintln!("\nThe server closed the console.");
                Ok(())
            }
            End::Signal => Err(CliError::Interrupted(String::new())),
        }
    }
}

/// What asks a program to end.
struct Signals([Signal; 4]);

impl Signals {
    fn catch() -> std::io::Result<Signals> {
        Ok(Signals([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
            signal(SignalKind::quit())?,
        ]))
    }

    async fn any(&mut self) {
        let [a, b, c, d] = &mut self.0;
        tokio::select! {
            _ = a.recv() => {}
            _ = b.recv() => {}
            _ = c.recv() => {}
            _ = d.recv() => {}
        }
    }
}

/// Carries bytes both ways until there is a reason to leave.
async fn carry(
    input: &mut ConsoleInput,
    mut output: ConsoleOutput,
    escapes: bool,
    linger: Duration,
) -> Result<End, CliError> {
    let mut typed = read_stdin();
    let mut open = true;
    loop {
        tokio::select! {
            shown = output.next() => match shown? {
                Some(bytes) => out::write(&bytes)?,
                None => return Ok(End::Closed),
            },
            chunk = typed.recv(), if open => match chunk {
                Some(bytes) => {
                    let escape = bytes.iter().position(|b| escapes && *b == ESCAPE);
                    let send = &bytes[..escape.unwrap_or(bytes.len())];
                    if !send.is_empty() {
                        input.send(send.to_vec().into()).await?;
                    }
                    if escape.is_some() {
                        return Ok(End::Escape);
                    }
                }
                None => open = false,
            },
            // Begins anew with every piece that the guest writes.
            () = tokio::time::sleep(linger), if !open => return Ok(End::Silence),
        }
    }
}

/// Standard input from a thread of its own: a read of a terminal cannot be cancelled,
/// and must not hold the program back when it leaves.
fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (tell, hear) = mpsc::channel(16);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            match std::io::stdin().lock().read(&mut buffer) {
                Ok(n) if n > 0 && tell.blocking_send(buffer[..n].to_vec()).is_ok() => {}
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    });
    hear
}

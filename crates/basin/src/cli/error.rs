//! How commands fail: what is printed, and the exit status.

use std::io::ErrorKind;
use std::process::ExitCode;

use basin_api::client::ClientError;

use super::text;

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const UNREACHABLE: u8 = 3;
const INTERRUPTED: u8 = 130;

/// Why a command ended early.
#[derive(Debug)]
pub enum CliError {
    Client(ClientError),
    Failed {
        what: String,
        advice: String,
    },
    /// The command line asks for something that makes no sense.
    Usage {
        what: String,
        advice: String,
    },
    /// Somebody pressed Ctrl-C; the text says what goes on nevertheless.
    Interrupted(String),
    /// Standard output does not take more.
    Output(std::io::Error),
}

impl CliError {
    pub fn failed(what: impl Into<String>, advice: impl Into<String>) -> CliError {
        CliError::Failed { what: what.into(), advice: advice.into() }
    }

    pub fn usage(what: impl Into<String>, advice: impl Into<String>) -> CliError {
        CliError::Usage { what: what.into(), advice: advice.into() }
    }

    /// Says on standard error what happened; returns the status to exit with.
    pub fn report(&self) -> ExitCode {
        match self {
            CliError::Client(error) => {
                say(&error.to_string(), error.advice());
                match error {
                    ClientError::Unreachable { .. } => UNREACHABLE,
                    _ => FAILED,
                }
            }
            CliError::Failed { what, advice } => {
                say(what, advice);
                FAILED
            }
            CliError::Usage { what, advice } => {
                say(what, advice);
                USAGE
            }
            CliError::Interrupted(text) => {
                if !text.is_empty() {
                    eprintln!("{text}");
                }
                INTERRUPTED
            }
            // Whoever read us has read enough, as `head` does.
            CliError::Output(error) if error.kind() == ErrorKind::BrokenPipe => 0,
            CliError::Output(error) => {
                say(&format!("cannot write to standard output: {error}"), "");
                FAILED
            }
        }
        .into()
    }
}

fn say(what: &str, advice: &str) {
    eprint!("{}", message(what, advice));
}

fn message(what: &str, advice: &str) -> String {
    let mut message = format!("error: {}\n", text::clean_lines(what));
    for line in text::clean_lines(advice).lines() {
        message.push_str(&format!("  → {line}\n"));
    }
    message
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> CliError {
        CliError::Client(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        assert_eq!(message("no room", ""), "error: no room\n");
        assert_eq!(message("no room", "make some"), "error: no room\n  → make some\n");
        // What a guest wrote must not steer the terminal.
        assert_eq!(message("\u{1b}[2J", "a\nb"), "error: \\u{1b}[2J\n  → a\n  → b\n");
    }
}

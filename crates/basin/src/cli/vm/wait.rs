//! `basin vm wait`.

use std::time::Duration;

use basin_api::vm::{State, Vm};
use clap::{Args, ValueEnum};

use crate::cli::error::CliError;
use crate::cli::session::Session;
use crate::cli::text::{parse_seconds, seconds};
use crate::cli::view::word;

/// Between two looks. The agent's answers are figures of the moment, which no event tells.
const INTERVAL: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
#[command(after_help = "Example:
  basin vm start web && basin vm wait web --for agent --timeout 2m && ssh debian@$(basin vm ip web)")]
pub struct WaitArgs {
    vm: String,
    /// What to wait for
    #[arg(long = "for", value_enum, value_name = "WHAT")]
    what: Condition,
    /// Give up after this time; never, when absent
    #[arg(long, value_name = "TIME", value_parser = parse_seconds)]
    timeout: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Condition {
    /// It runs
    Running,
    /// It is off
    Stopped,
    /// It is paused
    Paused,
    /// The agent in the guest answers
    Agent,
}

impl Condition {
    fn holds(self, vm: &Vm) -> bool {
        match self {
            Condition::Running => {
                matches!(vm.status.state, State::Running | State::Migrating)
            }
            Condition::Stopped => vm.status.state == State::Stopped,
            Condition::Paused => vm.status.state == State::Paused,
            Condition::Agent => vm.status.usage.as_ref().is_some_and(|u| u.guest.is_some()),
        }
    }
}

impl WaitArgs {
    pub async fn run(self, session: &Session) -> Result<(), CliError> {
        let Some(timeout) = self.timeout else { return self.look(session).await };
        let look = self.look(session);
        match tokio::time::timeout(Duration::from_secs(timeout), look).await {
            Ok(result) => result,
            Err(_) => Err(CliError::failed(
                format!("vm {} did not come that far in {}", self.vm, seconds(timeout)),
                format!("see: basin vm show {0}, basin vm log {0}", self.vm),
            )),
        }
    }

    async fn look(&self, session: &Session) -> Result<(), CliError> {
        loop {
            let vm: Vm = match session.client.get(&self.vm).await {
                Ok(vm) => vm,
                // A daemon that restarts is no reason to stop waiting, an absent one is.
                Err(e) if e.is_transient() && self.timeout.is_some() => {
                    tokio::time::sleep(INTERVAL).await;
                    continue;
                }
                Err(e) => return Err(e.into()),
            };
            if self.what.holds(&vm) {
                return session.said(&vm, &format!("is {}", word(&vm.status.state)));
            }
            if vm.status.state == State::Failed && self.what != Condition::Stopped {
                let why = vm.status.last_failure.as_ref().map_or("", |f| f.message.as_str());
                return Err(CliError::failed(
                    format!("vm {} has failed: {why}", vm.meta.name),
                    format!("see: basin vm show {}", vm.meta.name),
                ));
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }
}

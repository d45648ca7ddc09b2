//! `basin task`.

use basin_api::task::{Task, TaskState};
use clap::{Subcommand, ValueEnum};
use jiff::Timestamp;

use super::error::CliError;
use super::follow::outcome;
use super::session::Session;
use super::table::Sheet;
use super::text::age;
use super::view::{View, word};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List tasks, also those that are over
    #[command(visible_alias = "ls")]
    List {
        /// Only those in this state
        #[arg(long, value_enum)]
        state: Option<StateArg>,
    },
    /// Show one in full
    Show { id: String },
    /// Wait for a task; fails when the task does
    Wait { id: String },
    /// Stop a task and undo what it has done
    Cancel {
        id: String,
        /// Return at once, instead of when everything is undone
        #[arg(long)]
        no_wait: bool,
    },
}

/// A state, as it is written on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StateArg {
    Running,
    Undoing,
    Done,
    Failed,
    Cancelled,
}

impl From<StateArg> for TaskState {
    fn from(arg: StateArg) -> TaskState {
        match arg {
            StateArg::Running => TaskState::Running,
            StateArg::Undoing => TaskState::Undoing,
            StateArg::Done => TaskState::Done,
            StateArg::Failed => TaskState::Failed,
            StateArg::Cancelled => TaskState::Cancelled,
        }
    }
}

impl Command {
    pub async fn run(self, session: &Session) -> Result<(), CliError> {
        match self {
            Command::List { state } => {
                session.print_list(&session.client.tasks(state.map(TaskState::from)).await?)
            }
            Command::Show { id } => session.show::<Task>(&id).await,
            Command::Wait { id } => {
                let task = session.follow(&id).await?;
                match outcome(&task) {
                    None => session.said(&task, "done"),
                    Some(error) => Err(error),
                }
            }
            Command::Cancel { id, no_wait: true } => {
                session.said(&session.client.cancel_task(&id).await?, "is being cancelled")
            }
            Command::Cancel { id, no_wait: false } => {
                session.client.cancel_task(&id).await?;
                let task = session.follow(&id).await?;
                match task.state {
                    TaskState::Done => Err(CliError::failed(
                        format!("task {id} was done before it could be cancelled"),
                        "",
                    )),
                    state => session.said(&task, &word(&state)),
                }
            }
        }
    }
}

impl View for Task {
    const COLUMNS: &[&str] = &["ID", "KIND", "SUBJECT", "STATE", "PERCENT", "MESSAGE", "AGE"];

    fn label(&self) -> &str {
        &self.id
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        let message = self.problem.as_ref().map_or(&self.message, |p| &p.detail);
        vec![
            self.id.clone(),
            self.kind.clone(),
            self.subject.clone(),
            word(&self.state),
            self.percent.to_string(),
            message.clone(),
            age(now, &self.created_at),
        ]
    }

    fn sheet(&self, now: Timestamp) -> Sheet {
        let ago = |time: &str| format!("{time} ({} ago)", age(now, time));
        let mut sheet = Sheet::default();
        sheet
            .pair("Id", &self.id)
            .pair("Kind", &self.kind)
            .pair("Subject", &self.subject)
            .pair("State", word(&self.state))
            .pair("Progress", format!("{} %, {}", self.percent, self.message))
            .some("Cancel", self.cancel_requested.then_some("requested"))
            .some("Problem", self.problem.as_ref().map(|p| p.detail.as_str()))
            .some(
                "Advice",
                self.problem.as_ref().map(|p| p.advice.as_str()).filter(|a| !a.is_empty()),
            )
            .pair("Created", ago(&self.created_at))
            .some("Finished", self.finished_at.as_deref().map(ago));
        sheet
    }
}

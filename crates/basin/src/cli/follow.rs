//! Waiting for a task, with its progress on a terminal.

use std::time::Duration;

use basin_api::client::{Progress, Readable};
use basin_api::task::{Task, TaskState};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::error::CliError;
use super::session::{Session, sentence};
use super::text::clean;
use super::view::View;

/// Whether to wait.
#[derive(Debug, Clone, Copy, Args)]
pub struct Wait {
    /// Return at once, with the task, instead of when it is done
    #[arg(long, alias = "detach")]
    pub no_wait: bool,
}

impl Session {
    /// Waits for a task about a resource that is there afterwards: prints the resource,
    /// or says `vm web VERB`. Without waiting prints the task.
    pub async fn finish<R: View + Readable>(
        &self,
        task: Task,
        wait: Wait,
        verb: &str,
    ) -> Result<(), CliError> {
        let Some(task) = self.done(task, wait).await? else { return Ok(()) };
        let id = task.subject.split_once('/').map_or(task.subject.as_str(), |(_, id)| id);
        self.said(&self.client.get::<R>(id).await?, verb)
    }

    /// The same for a resource that is gone afterwards: programs get the task.
    pub async fn finish_gone<R: View>(
        &self,
        task: Task,
        wait: Wait,
        which: &str,
    ) -> Result<(), CliError> {
        match self.done(task, wait).await? {
            Some(task) => self.out.object(&task, |_| sentence::<R>(which, "deleted")),
            None => Ok(()),
        }
    }

    /// The task once it succeeded; none when nobody is to wait, and it was printed.
    async fn done(&self, task: Task, wait: Wait) -> Result<Option<Task>, CliError> {
        if wait.no_wait {
            self.out.object(&task, |task| {
                format!("task {0} started; follow it with: basin task wait {0}\n", clean(&task.id))
            })?;
            return Ok(None);
        }
        let task = self.follow(&task.id).await?;
        match outcome(&task) {
            None => Ok(Some(task)),
            Some(error) => Err(error),
        }
    }

    /// Waits until a task is over, however it ends.
    pub async fn follow(&self, id: &str) -> Result<Task, CliError> {
        let bar = progress_bar();
        let wait = self.client.wait_task(id, |progress| match progress {
            Progress::Task(task) => {
                bar.set_position(task.percent.min(100).into());
                bar.set_message(clean(&task.message));
            }
            Progress::Reconnecting(_) => bar.set_message("waiting for the server to come back"),
        });
        let result = tokio::select! {
            result = wait => result.map_err(CliError::from),
            _ = tokio::signal::ctrl_c() => Err(CliError::Interrupted(format!(
                "The task goes on without you.\n  \
                 follow it: basin task wait {id}\n  cancel it: basin task cancel {id}"
            ))),
        };
        bar.finish_and_clear();
        result
    }
}

/// Why a task that is over did not succeed; none when it did.
pub fn outcome(task: &Task) -> Option<CliError> {
    let problem = task.problem.as_ref();
    let detail = problem.map_or("the server does not say why", |p| p.detail.as_str());
    let advice = problem.map_or("", |p| p.advice.as_str());
    match task.state {
        TaskState::Done => None,
        TaskState::Failed => Some(CliError::failed(detail, advice)),
        TaskState::Cancelled => Some(CliError::failed(
            format!("task {} ({}) was cancelled; what it had done is undone", task.id, task.kind),
            "",
        )),
        TaskState::Running | TaskState::Undoing => {
            Some(CliError::failed(format!("task {} is not over", task.id), ""))
        }
    }
}

/// Hidden where standard error is no terminal.
fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {bar:24} {percent:>3}%  {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(100).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// A bar that counts bytes.
pub fn bytes_bar(what: &str) -> ProgressBar {
    let template = "{msg} {bar:24} {bytes}/{total_bytes}  {bytes_per_sec}  {eta}";
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style).with_message(clean(what))
}

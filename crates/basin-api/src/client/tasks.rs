//! Tasks: following and cancelling them.

use std::time::Duration;

use reqwest::Method;

use super::request::ANSWER_TIMEOUT;
use super::retry::Retry;
use super::{Client, ClientError, Resource};
use crate::reference::List;
use crate::task::{Task, TaskState};

/// How long the server may hold a poll back: also how old the progress shown may be.
const POLL: Duration = Duration::from_secs(1);

/// Between two polls whose answers were the same, in case the server does not hold them.
const PAUSE: Duration = Duration::from_millis(100);

/// What a wait reports on its way.
#[derive(Debug)]
pub enum Progress<'a> {
    Task(&'a Task),
    /// The server cannot be reached at the moment; the wait goes on.
    Reconnecting(&'a ClientError),
}

impl Client {
    /// Tasks, all or those in one state.
    pub async fn tasks(&self, state: Option<TaskState>) -> Result<List<Task>, ClientError> {
        let query: Vec<_> = state.map(|s| ("state", s)).into_iter().collect();
        self.json(self.request(Method::GET, &[Task::PATH])?.query(&query)).await
    }

    /// Asks a task to stop and to undo what it did.
    pub async fn cancel_task(&self, id: &str) -> Result<Task, ClientError> {
        self.json(self.request(Method::POST, &[Task::PATH, id, "cancel"])?).await
    }

    /// Follows a task until it is over, in whichever way: look at the state of what is
    /// returned. A restart of the daemon in the meantime is waited out.
    pub async fn wait_task(
        &self,
        id: &str,
        mut on_progress: impl FnMut(Progress<'_>),
    ) -> Result<Task, ClientError> {
        let mut retry = Retry::new(self.patience);
        let mut last = None;
        loop {
            match self.poll_task(id).await {
                Ok(task) => {
                    retry.succeeded();
                    let news = last.replace(task.revision) != Some(task.revision);
                    if news {
                        on_progress(Progress::Task(&task));
                    }
                    if task.state.is_over() {
                        return Ok(task);
                    }
                    if !news {
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                Err(error) => {
                    on_progress(Progress::Reconnecting(&error));
                    retry.failed(error).await?;
                }
            }
        }
    }

    async fn poll_task(&self, id: &str) -> Result<Task, ClientError> {
        let request = self.request(Method::GET, &[Task::PATH, id])?;
        let query = [("wait", POLL.as_secs())];
        self.json(request.query(&query).timeout(POLL + ANSWER_TIMEOUT)).await
    }
}

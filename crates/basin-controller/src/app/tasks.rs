//! Tasks: what is under way, and what was.

use std::time::Duration;

use basin_model::TaskId;
use basin_model::task::{Problem, Task};
use basin_store::records::Versioned;

use super::{App, problems, store_problem};
use crate::workflow::CancelError;

impl App {
    /// The task as it is, with its progress of this moment.
    pub fn task(&self, reference: &str) -> Result<Versioned<Task>, Problem> {
        let mut record = self.inventory().read().task(reference)?.clone();
        self.workflows.overlay(&mut record.value);
        Ok(record)
    }

    pub fn tasks(&self) -> Vec<Versioned<Task>> {
        let mut tasks: Vec<_> = self.inventory().read().tasks.values().cloned().collect();
        for task in &mut tasks {
            self.workflows.overlay(&mut task.value);
        }
        tasks
    }

    /// Waits until the task is over, but no longer than `limit`.
    pub async fn wait_task(
        &self,
        reference: &str,
        limit: Duration,
    ) -> Result<Versioned<Task>, Problem> {
        let id = self.task(reference)?.value.id;
        let mut changes = self.inventory().changes();
        let over = async {
            loop {
                changes.borrow_and_update();
                let task = self.task(&id.to_string())?;
                if task.value.state.is_over() || changes.changed().await.is_err() {
                    return Ok(task);
                }
            }
        };
        match tokio::time::timeout(limit, over).await {
            Ok(task) => task,
            Err(_) => self.task(&id.to_string()),
        }
    }

    pub async fn cancel_task(&self, reference: &str) -> Result<TaskId, Problem> {
        let id = self.task(reference)?.value.id;
        self.workflows.cancel(id).await.map_err(|e| match e {
            CancelError::NotFound(_) => problems::not_found("task", reference),
            CancelError::Over(_) => {
                problems::wrong_state("task", id, "over", "Nothing is to be done.")
            }
            CancelError::TooLate { step, .. } => {
                let is = format!("past the point of no return (step {step})");
                problems::wrong_state("task", id, is, "It will be done soon.")
            }
            CancelError::Store(e) => store_problem(&e),
        })?;
        Ok(id)
    }
}

//! Tasks.

use basin_api::task::{Task, TaskProblem, TaskState};
use basin_model::task as model;
use basin_store::records::Versioned;

pub fn task(record: &Versioned<model::Task>) -> Task {
    started(&record.value, record.revision.0)
}

/// A task that was started this moment.
pub fn started(task: &model::Task, revision: u64) -> Task {
    let (state, problem) = match &task.state {
        model::TaskState::Running => (TaskState::Running, None),
        model::TaskState::Undoing { problem } => (TaskState::Undoing, Some(problem)),
        model::TaskState::Done => (TaskState::Done, None),
        model::TaskState::Failed { problem } => (TaskState::Failed, Some(problem)),
        model::TaskState::Cancelled => (TaskState::Cancelled, None),
    };
    Task {
        id: task.id.to_string(),
        kind: task.kind.clone(),
        subject: task.subject.clone(),
        state,
        message: task.message.clone(),
        percent: if state == TaskState::Done { 100 } else { task.percent },
        cancel_requested: task.cancel_requested,
        problem: problem.map(|p| TaskProblem {
            code: p.code.clone(),
            detail: p.detail.clone(),
            advice: p.advice.clone(),
        }),
        created_at: task.created_at.to_string(),
        finished_at: task.finished_at.map(|t| t.to_string()),
        revision,
    }
}

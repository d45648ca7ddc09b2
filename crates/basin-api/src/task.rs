//! Tasks: long operations that can be followed and cancelled.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A long operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Task {
    pub id: String,
    /// What it does, such as `vm-create`.
    pub kind: String,
    /// What it is about, such as `vm/0190…`.
    pub subject: String,
    pub state: TaskState,
    /// The step under way, in words.
    pub message: String,
    /// 0 to 100.
    pub percent: u8,
    pub cancel_requested: bool,
    /// Why it failed, or why it is being undone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<TaskProblem>,
    pub created_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
    pub revision: u64,
}

/// Where a task is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    Running,
    /// It failed or was cancelled; what it had done is being taken back.
    Undoing,
    Done,
    /// Over; nothing is left of what it had done.
    Failed,
    Cancelled,
}

impl TaskState {
    pub const fn is_over(self) -> bool {
        matches!(self, TaskState::Done | TaskState::Failed | TaskState::Cancelled)
    }
}

/// What went wrong in a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskProblem {
    /// A stable word for programs.
    pub code: String,
    /// What failed, and why.
    pub detail: String,
    /// What to do about it.
    pub advice: String,
}

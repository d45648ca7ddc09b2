//! Tasks: long operations, as workflows report them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::TaskId;

/// A long operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    pub id: TaskId,
    /// The workflow's name, such as `vm-create`.
    pub kind: String,
    /// What it is about, such as `vm/0190…`.
    pub subject: String,
    pub state: TaskState,
    /// The step under way and how far it is, in words: `copying 1.2 of 2.0 GiB`.
    pub message: String,
    /// 0 to 100, of the whole.
    pub percent: u8,
    pub cancel_requested: bool,
    pub created_at: Timestamp,
    pub finished_at: Option<Timestamp>,
}

/// Where a task is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum TaskState {
    Running,
    /// It failed or was cancelled; what it had done is being taken back.
    Undoing {
        problem: Problem,
    },
    Done,
    /// Over, and nothing is left of it.
    Failed {
        problem: Problem,
    },
    Cancelled,
}

impl TaskState {
    pub const fn is_over(&self) -> bool {
        matches!(self, TaskState::Done | TaskState::Failed { .. } | TaskState::Cancelled)
    }
}

/// What went wrong, in the three parts that an error owes its reader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A stable word for programs, such as `name-taken`.
    pub code: String,
    /// What was refused or failed, and why.
    pub detail: String,
    /// What to do about it.
    pub advice: String,
}

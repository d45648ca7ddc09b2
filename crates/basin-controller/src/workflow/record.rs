//! What the store holds of a workflow that is under way.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::plan::Cause;

/// Under [`basin_model::keys::workflow`], for as long as there is something to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub kind: String,
    /// Who drives it: raised by each engine that takes it over.
    pub epoch: u64,
    pub phase: Phase,
    /// The struct, as the last step that succeeded left it.
    pub workflow: Value,
}

/// What to do next. Steps go by name, so that a release may add some.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    Run { step: String },
    Undo { step: String, cause: Cause },
}

impl Phase {
    pub fn step(&self) -> &str {
        match self {
            Phase::Run { step } | Phase::Undo { step, .. } => step,
        }
    }
}

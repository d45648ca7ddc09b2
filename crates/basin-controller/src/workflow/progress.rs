//! How far a workflow is: in memory, for whoever looks now.

use std::sync::Arc;

use tokio::sync::watch;

use super::plan::Plan;

/// What a step reported last.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    pub message: String,
    /// Of the whole workflow.
    pub percent: u8,
}

/// Where a step reports to.
#[derive(Clone)]
pub(super) struct Reporter {
    pub progress: watch::Sender<Progress>,
    pub plan: Arc<Plan>,
    pub step: usize,
}

impl Reporter {
    pub fn report(&self, fraction: f64, message: String) {
        let percent = self.plan.percent(self.step, fraction);
        self.set(Progress { message, percent });
    }

    /// New words for what is as far as before.
    pub fn say(&self, message: String) {
        let percent = self.progress.borrow().percent;
        self.set(Progress { message, percent });
    }

    pub fn set(&self, progress: Progress) {
        self.progress.send_if_modified(|old| {
            let new = *old != progress;
            *old = progress;
            new
        });
    }
}

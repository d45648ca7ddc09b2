//! Pure. How long finished tasks are remembered.

use std::time::Duration;

use basin_model::TaskId;
use basin_model::task::Task;
use jiff::Timestamp;

/// What is past either limit is forgotten.
#[derive(Debug, Clone, Copy)]
pub struct HistoryLimits {
    pub tasks: usize,
    pub age: Duration,
}

impl Default for HistoryLimits {
    fn default() -> Self {
        Self { tasks: 1000, age: Duration::from_secs(7 * 24 * 3600) }
    }
}

/// The tasks to forget, oldest end first. Tasks that are not over never are.
pub(super) fn outdated<'a>(
    tasks: impl IntoIterator<Item = &'a Task>,
    now: Timestamp,
    limits: HistoryLimits,
) -> Vec<TaskId> {
    let over = |t: &'a Task| t.finished_at.filter(|_| t.state.is_over()).map(|at| (at, t.id));
    let mut finished: Vec<(Timestamp, TaskId)> = tasks.into_iter().filter_map(over).collect();
    finished.sort();
    let excess = finished.len().saturating_sub(limits.tasks);
    let old = |at: Timestamp| now.duration_since(at).unsigned_abs() > limits.age && at < now;
    let forget = finished.iter().enumerate().filter(|(n, (at, _))| *n < excess || old(*at));
    forget.map(|(_, (_, id))| *id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use basin_model::task::TaskState;
    use proptest::prelude::*;

    fn task(n: usize, finished: Option<i64>) -> Task {
        Task {
            id: TaskId::from_uuid(uuid::Uuid::from_u128(n as u128)),
            kind: "k".into(),
            subject: "s".into(),
            state: if finished.is_some() { TaskState::Done } else { TaskState::Running },
            message: String::new(),
            percent: 0,
            cancel_requested: false,
            created_at: Timestamp::UNIX_EPOCH,
            finished_at: finished.map(|s| Timestamp::from_second(s).unwrap()),
        }
    }

    proptest! {
        #[test]
        fn the_newest_stay_and_the_running_always(
            ends in prop::collection::vec(prop::option::of(0i64..2000), 0..40),
            keep in 0usize..20,
            age in 0u64..2000,
        ) {
            let now = Timestamp::from_second(1000).unwrap();
            let tasks: Vec<Task> = ends.iter().enumerate().map(|(n, e)| task(n, *e)).collect();
            let limits = HistoryLimits { tasks: keep, age: Duration::from_secs(age) };
            let gone = outdated(&tasks, now, limits);
            let left: Vec<&Task> = tasks.iter().filter(|t| !gone.contains(&t.id)).collect();
            let ended = |t: &&&Task| t.finished_at.is_some();
            prop_assert!(left.iter().filter(ended).count() <= keep);
            for task in &tasks {
                let Some(end) = task.finished_at else {
                    prop_assert!(!gone.contains(&task.id));
                    continue;
                };
                let too_old = 1000 - end.as_second() > age as i64;
                prop_assert!(!too_old || gone.contains(&task.id));
                let newer = |t: &&Task| t.finished_at.is_some_and(|e| e >= end);
                if gone.contains(&task.id) {
                    prop_assert!(too_old || tasks.iter().filter(newer).count() > keep);
                }
            }
        }
    }
}

//! Pure. Where a workflow goes next.

use basin_model::task::Problem;
use serde::{Deserialize, Serialize};

/// What can become of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Undoable,
    /// Before the point of no return, with nothing to undo.
    WithoutUndo,
    /// The point of no return itself: once it has succeeded, nothing is undone.
    Decisive,
    /// Past the point of no return.
    Forward,
}

#[derive(Debug, Clone)]
pub(super) struct StepInfo {
    pub name: &'static str,
    pub weight: u32,
    pub class: Class,
}

/// The steps of a kind of workflow.
#[derive(Debug, Clone)]
pub(super) struct Plan(Vec<StepInfo>);

/// Why a workflow is undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Cause {
    Failed(Problem),
    Cancelled,
}

/// Where to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    Run(usize),
    Undo(usize, Cause),
    /// The same again, after a while.
    Again(Problem),
    Done,
    Undone(Cause),
}

impl Plan {
    /// Refuses what no engine could run, with words for the programmer.
    pub fn new(steps: Vec<StepInfo>) -> Result<Plan, String> {
        if steps.is_empty() {
            return Err("a workflow has at least one step".to_owned());
        }
        for (n, step) in steps.iter().enumerate() {
            if step.name.is_empty() || step.name.contains('/') {
                return Err(format!("'{}' is no name of a step", step.name));
            }
            if steps[..n].iter().any(|s| s.name == step.name) {
                return Err(format!("two steps are named {}", step.name));
            }
            let past = |class| matches!(class, Class::Forward | Class::Decisive);
            if n > 0 && past(steps[n - 1].class) && step.class != Class::Forward {
                return Err(format!(
                    "step {} can be undone, but comes after the point of no return",
                    step.name
                ));
            }
        }
        Ok(Plan(steps))
    }

    pub fn steps(&self) -> &[StepInfo] {
        &self.0
    }

    pub fn name(&self, step: usize) -> &'static str {
        self.0[step].name
    }

    pub fn find(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|s| s.name == name)
    }

    pub fn is_forward(&self, step: usize) -> bool {
        self.0[step].class == Class::Forward
    }

    pub fn is_decisive(&self, step: usize) -> bool {
        self.0[step].class == Class::Decisive
    }

    /// After the step ran. `cancel`: somebody wants the workflow cancelled.
    pub fn after_run(&self, step: usize, outcome: Result<(), Problem>, cancel: bool) -> Next {
        let forward = self.is_forward(step);
        match outcome {
            Err(problem) if forward => Next::Again(problem),
            Ok(()) if self.is_decisive(step) => self.after(step),
            _ if cancel && !forward => self.undo_from(Some(step), Cause::Cancelled),
            Err(problem) => self.undo_from(Some(step), Cause::Failed(problem)),
            Ok(()) => self.after(step),
        }
    }

    fn after(&self, step: usize) -> Next {
        if step + 1 < self.0.len() { Next::Run(step + 1) } else { Next::Done }
    }

    /// After the undo of the step ran.
    pub fn after_undo(&self, step: usize, outcome: Result<(), Problem>, cause: Cause) -> Next {
        match outcome {
            Err(problem) => Next::Again(problem),
            Ok(()) => self.undo_from(step.checked_sub(1), cause),
        }
    }

    /// The newest step up to this one that has something to undo.
    pub fn undo_from(&self, step: Option<usize>, cause: Cause) -> Next {
        let newest =
            step.and_then(|last| self.0[..=last].iter().rposition(|s| s.class == Class::Undoable));
        match newest {
            Some(step) => Next::Undo(step, cause),
            None => Next::Undone(cause),
        }
    }

    /// How far the whole is when the step is this far.
    pub fn percent(&self, step: usize, fraction: f64) -> u8 {
        let weight = |steps: &[StepInfo]| steps.iter().map(|s| f64::from(s.weight)).sum::<f64>();
        let whole = weight(&self.0);
        if whole == 0.0 {
            return 0;
        }
        let fraction = if fraction.is_finite() { fraction.clamp(0.0, 1.0) } else { 0.0 };
        let done = weight(&self.0[..step]) + f64::from(self.0[step].weight) * fraction;
        // 100 is for what is done.
        ((done / whole * 100.0) as u8).min(99)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

    fn plan(classes: &[Class]) -> Result<Plan, String> {
        let step = |(n, class): (usize, &Class)| StepInfo {
            name: NAMES[n],
            weight: n as u32,
            class: *class,
        };
        Plan::new(classes.iter().enumerate().map(step).collect())
    }

    fn problem() -> Problem {
        Problem { code: "x".into(), detail: "x".into(), advice: "x".into() }
    }

    #[test]
    fn plans_that_cannot_be_run_are_refused() {
        use Class::{Decisive, Forward, Undoable, WithoutUndo};
        assert!(plan(&[]).is_err());
        assert!(plan(&[Undoable, Forward, Undoable]).is_err());
        assert!(plan(&[Undoable, Forward, WithoutUndo]).is_err());
        assert!(plan(&[Decisive, Undoable]).is_err());
        assert!(plan(&[Undoable, WithoutUndo, Forward, Forward]).is_ok());
        assert!(plan(&[Undoable, Decisive, Forward]).is_ok());
        let same = |name| StepInfo { name, weight: 1, class: Undoable };
        assert!(Plan::new(vec![same("a"), same("a")]).is_err());
        assert!(Plan::new(vec![same("a/b")]).is_err());
    }

    #[test]
    fn what_a_decisive_step_decided_stays() {
        let plan = plan(&[Class::Undoable, Class::Decisive, Class::Forward]).unwrap();
        assert_eq!(plan.after_run(1, Ok(()), true), Next::Run(2));
        assert_eq!(plan.after_run(1, Err(problem()), true), Next::Undo(0, Cause::Cancelled));
        let failed = Next::Undo(0, Cause::Failed(problem()));
        assert_eq!(plan.after_run(1, Err(problem()), false), failed);
    }

    proptest! {
        /// Whatever fails and whenever somebody cancels: no forward step is left
        /// undone or undone again, and every undoable step that ran is undone,
        /// newest first.
        #[test]
        fn it_finishes_or_is_undone(
            undoable in prop::collection::vec(any::<bool>(), 1..4),
            forward in 0usize..4,
            fates in prop::collection::vec(0u8..8, 100),
            cancel_at in prop::option::of(0usize..20),
        ) {
            let before = undoable.iter().map(|u| if *u { Class::Undoable } else { Class::WithoutUndo });
            let classes: Vec<Class> =
                before.chain(std::iter::repeat_n(Class::Forward, forward)).collect();
            let plan = plan(&classes).unwrap();
            let (mut touched, mut undone) = (Vec::new(), Vec::new());
            let mut at = Next::Run(0);
            for (n, fate) in fates.iter().enumerate() {
                let cancel = cancel_at.is_some_and(|c| n >= c);
                let outcome = if *fate == 0 { Err(problem()) } else { Ok(()) };
                let next = match &at {
                    Next::Run(step) => {
                        if touched.last() != Some(step) {
                            touched.push(*step);
                        }
                        plan.after_run(*step, outcome, cancel)
                    }
                    Next::Undo(step, cause) => {
                        prop_assert_eq!(classes[*step], Class::Undoable);
                        if outcome.is_ok() {
                            undone.push(*step);
                        }
                        plan.after_undo(*step, outcome, cause.clone())
                    }
                    _ => break,
                };
                if !matches!(next, Next::Again(_)) {
                    at = next;
                }
            }
            match at {
                Next::Done => {
                    prop_assert_eq!(touched, (0..classes.len()).collect::<Vec<_>>());
                    prop_assert!(undone.is_empty());
                }
                Next::Undone(_) => {
                    touched.retain(|s| classes[*s] == Class::Undoable);
                    touched.reverse();
                    prop_assert_eq!(undone, touched);
                }
                other => prop_assert!(fates.iter().filter(|f| **f == 0).count() > 10, "{:?}", other),
            }
        }

        #[test]
        fn percent_never_falls_and_never_reaches_the_end(
            n in 1usize..8, step in 0usize..8, a in 0.0f64..1.0, b in 0.0f64..1.0,
        ) {
            let plan = plan(&vec![Class::Undoable; n]).unwrap();
            let step = step.min(n - 1);
            prop_assert!(plan.percent(step, a.min(b)) <= plan.percent(step, a.max(b)));
            prop_assert!(plan.percent(step, f64::NAN) <= 99);
            if step + 1 < n {
                prop_assert!(plan.percent(step, 1.0) <= plan.percent(step + 1, 0.0));
            }
        }
    }
}

//! Faults at chosen places of a workflow. For tests only.
//!
//! With `BASIN_FAULT=vm-create/make-volumes/after` in its environment, the daemon
//! aborts when a workflow of that kind reaches that place: what kill -9 at that
//! instruction would do. Places: `before` a step runs, `after` it ran but before
//! that is saved, `undo-before` and `undo-after` likewise. Never set it on a
//! server that matters; it does nothing unless set when the daemon starts.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use basin_model::task::Problem;

/// The variable that [`from_env`] reads.
pub const VARIABLE: &str = "BASIN_FAULT";

/// A place in the run of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Point {
    Before,
    After,
    UndoBefore,
    UndoAfter,
}

impl Point {
    pub const ALL: [Point; 4] = [Point::Before, Point::After, Point::UndoBefore, Point::UndoAfter];

    const fn word(self) -> &'static str {
        match self {
            Point::Before => "before",
            Point::After => "after",
            Point::UndoBefore => "undo-before",
            Point::UndoAfter => "undo-after",
        }
    }
}

/// A place in a workflow.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    pub kind: String,
    pub step: String,
    pub point: Point,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.kind, self.step, self.point.word())
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(s: &str) -> Result<Place, String> {
        let point = |word: &str| Point::ALL.into_iter().find(|p| p.word() == word);
        match s.split('/').collect::<Vec<_>>()[..] {
            [kind, step, word] if !kind.is_empty() && !step.is_empty() => point(word)
                .map(|point| Place { kind: kind.to_owned(), step: step.to_owned(), point }),
            _ => None,
        }
        .ok_or_else(|| {
            format!("{VARIABLE}={s} is no place: write KIND/STEP/before, after, undo-before or undo-after")
        })
    }
}

/// What happens at a place.
#[derive(Debug, Clone)]
pub enum Fault {
    Nothing,
    /// The process is gone at once.
    Abort,
    /// The engine stops driving this workflow, as if the process were gone.
    Stop,
    /// The step has failed; at [`Point::Before`] without having run.
    Fail(Problem),
    /// The step runs once more (after it ran).
    Repeat,
    /// Somebody cancels.
    Cancel,
}

/// Asked at every place that a workflow reaches.
pub type Faults = Arc<dyn Fn(&Place) -> Fault + Send + Sync>;

/// No faults.
pub fn none() -> Faults {
    Arc::new(|_| Fault::Nothing)
}

/// What the environment asks for; an error if it cannot be understood.
pub fn from_env() -> Result<Faults, String> {
    match std::env::var(VARIABLE) {
        Err(_) => Ok(none()),
        Ok(text) => {
            let place: Place = text.parse()?;
            tracing::warn!("{VARIABLE} is set: this daemon will abort at {place}");
            Ok(Arc::new(move |at| if *at == place { Fault::Abort } else { Fault::Nothing }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_are_written() {
        for text in ["vm-create/define/before", "vm-create/define/after", "a/b/undo-before"] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        for bad in ["", "a", "a/b", "a/b/c", "a/b/before/x", "/b/before", "a//before"] {
            assert!(bad.parse::<Place>().unwrap_err().contains(VARIABLE), "{bad}");
        }
    }
}

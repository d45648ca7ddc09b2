//! Steps in a row: each is announced, timed, and the first failure ends it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

#[derive(Default)]
pub struct Steps {
    done: Vec<(String, Duration)>,
}

impl Steps {
    pub fn step<T>(&mut self, name: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("==> {name}");
        let start = Instant::now();
        let result = run();
        self.done.push((name.to_owned(), start.elapsed()));
        result.with_context(|| format!("failed: {name}"))
    }

    /// How long each step took.
    pub fn summary(&self) -> String {
        let width = self.done.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let line = |(name, time): &(String, Duration)| {
            format!("{name:width$} {:8.1} s\n", time.as_secs_f64())
        };
        self.done.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_its_step_and_is_in_the_summary() {
        let mut steps = Steps::default();
        assert_eq!(steps.step("one", || Ok(1)).unwrap(), 1);
        let failed = steps.step("second", || -> Result<()> { anyhow::bail!("no room") });
        assert_eq!(format!("{:#}", failed.unwrap_err()), "failed: second: no room");
        let summary = steps.summary();
        assert!(summary.starts_with("one    "), "{summary}");
        assert!(summary.contains("\nsecond "), "{summary}");
    }
}

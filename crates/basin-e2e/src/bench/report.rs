//! Pure. What a measurement says, as a table for people and JSON for programs.

use std::fmt::Write;

use serde::Serialize;

/// Which direction is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    Lower,
    Higher,
}

/// One figure of Basin's beside the other's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    pub case: String,
    pub unit: &'static str,
    pub basin: f64,
    pub peer: f64,
    pub peer_name: &'static str,
    /// Basin's over the other's.
    pub ratio: f64,
    pub target: f64,
    pub better: Better,
    pub runs: usize,
}

impl Figure {
    /// The medians of as many runs of each.
    pub fn new(
        case: impl Into<String>,
        unit: &'static str,
        (basin, peer): (&[f64], &[f64]),
        peer_name: &'static str,
        (target, better): (f64, Better),
    ) -> Figure {
        let (runs, basin, peer) = (basin.len(), median(basin), median(peer));
        let ratio = if peer > 0.0 { basin / peer } else { f64::NAN };
        Figure { case: case.into(), unit, basin, peer, peer_name, ratio, target, better, runs }
    }

    pub fn holds(&self) -> bool {
        match self.better {
            Better::Lower => self.ratio <= self.target,
            Better::Higher => self.ratio >= self.target,
        }
    }
}

/// The middle value; NaN of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

pub fn table(figures: &[Figure]) -> String {
    let mut text = String::new();
    for f in figures {
        let sign = match f.better {
            Better::Lower => "<=",
            Better::Higher => ">=",
        };
        let _ = writeln!(
            text,
            "{:<28} {:>12.1} {:<9} {:>12.1} {:<22} ratio {:.2} ({sign} {:.2}: {})",
            f.case,
            f.basin,
            f.unit,
            f.peer,
            f.peer_name,
            f.ratio,
            f.target,
            if f.holds() { "holds" } else { "MISSED" },
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_target_is_held_in_its_direction() {
        let figure = |better| Figure::new("c", "u", (&[9.0], &[10.0]), "p", (1.0, better));
        assert!(figure(Better::Lower).holds());
        assert!(!figure(Better::Higher).holds());
    }
}

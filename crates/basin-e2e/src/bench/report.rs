//! Pure. What a measurement says, as a table for people and JSON for programs.

use std::fmt::Write;

use serde::{Serialize, Serializer};

/// Which direction is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    Lower,
    Higher,
}

/// What a figure is held against.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// Basin's over the peer's.
    Ratio(f64),
    /// Basin's less the peer's, in the figure's unit.
    OverPeer(f64),
    /// Basin's own, in the figure's unit.
    Value(f64),
}

/// One figure of Basin's, beside the peer's where there is one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    pub case: String,
    pub unit: &'static str,
    pub basin: f64,
    pub peer: Option<f64>,
    pub peer_name: Option<&'static str>,
    /// Basin's over the peer's.
    pub ratio: Option<f64>,
    #[serde(serialize_with = "as_words")]
    pub target: Option<Target>,
    pub better: Better,
    pub runs: usize,
    /// The least and the most of Basin's runs.
    pub range: (f64, f64),
    /// The least and the most of the peer's runs.
    pub peer_range: Option<(f64, f64)>,
}

impl Figure {
    /// The medians of as many runs of each; the target is of their ratio.
    pub fn new(
        case: impl Into<String>,
        unit: &'static str,
        (basin, peer): (&[f64], &[f64]),
        peer_name: &'static str,
        (target, better): (f64, Better),
    ) -> Figure {
        Figure::alone(case, unit, basin, better)
            .beside(peer_name, peer)
            .target(Target::Ratio(target))
    }

    /// The median of the runs, with no peer and no target yet.
    pub fn alone(
        case: impl Into<String>,
        unit: &'static str,
        basin: &[f64],
        better: Better,
    ) -> Figure {
        Figure {
            case: case.into(),
            unit,
            basin: median(basin),
            peer: None,
            peer_name: None,
            ratio: None,
            target: None,
            better,
            runs: basin.len(),
            range: range(basin),
            peer_range: None,
        }
    }

    #[must_use]
    pub fn beside(mut self, peer_name: &'static str, peer: &[f64]) -> Figure {
        let middle = median(peer);
        self.peer = Some(middle);
        self.peer_name = Some(peer_name);
        self.ratio = (middle > 0.0).then(|| self.basin / middle);
        self.peer_range = Some(range(peer));
        self
    }

    #[must_use]
    pub fn target(mut self, target: Target) -> Figure {
        self.target = Some(target);
        self
    }

    /// Whether the target is met; none where there is nothing to tell by.
    pub fn holds(&self) -> Option<bool> {
        let (value, limit) = match self.target? {
            Target::Ratio(limit) => (self.ratio?, limit),
            Target::OverPeer(limit) => (self.basin - self.peer?, limit),
            Target::Value(limit) => (self.basin, limit),
        };
        Some(match self.better {
            Better::Lower => value <= limit,
            Better::Higher => value >= limit,
        })
    }

    fn target_words(&self) -> String {
        let Some(target) = self.target else { return String::new() };
        let sign = match self.better {
            Better::Lower => "<=",
            Better::Higher => ">=",
        };
        let words = target.words();
        match self.holds() {
            Some(true) => format!("{sign} {words}: holds"),
            Some(false) => format!("{sign} {words}: MISSED"),
            None => format!("{sign} {words}"),
        }
    }
}

impl Target {
    fn words(self) -> String {
        match self {
            Target::Ratio(limit) => format!("ratio {limit:.2}"),
            Target::OverPeer(limit) => format!("peer + {limit}"),
            Target::Value(limit) => limit.to_string(),
        }
    }
}

fn as_words<S: Serializer>(target: &Option<Target>, serializer: S) -> Result<S::Ok, S::Error> {
    target.map(Target::words).serialize(serializer)
}

/// The middle value; NaN of nothing.
pub fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The value that `percent` of all do not exceed; NaN of nothing.
pub fn percentile(values: &[f64], percent: usize) -> f64 {
    let sorted = sorted(values);
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

fn range(values: &[f64]) -> (f64, f64) {
    let sorted = sorted(values);
    let of = |value: Option<&f64>| value.copied().unwrap_or(f64::NAN);
    (of(sorted.first()), of(sorted.last()))
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// A line for each figure: the medians, the least and the most.
pub fn table(figures: &[Figure]) -> String {
    let wide = figures.iter().map(|f| f.case.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for f in figures {
        let peer = match (f.peer, f.peer_name, f.peer_range) {
            (Some(peer), Some(name), range) => format!("{name} {peer:.1}{}", spread(range)),
            _ => String::new(),
        };
        let ratio = f.ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let line = format!(
            "{:<wide$} {:>9.1} {:<9} {:<18} {peer:<42} {ratio:>7}  {}",
            f.case,
            f.basin,
            f.unit,
            spread(Some(f.range)).trim(),
            f.target_words(),
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

fn spread(range: Option<(f64, f64)>) -> String {
    match range {
        Some((least, most)) if least < most => format!(" ({least:.1}..{most:.1})"),
        _ => String::new(),
    }
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
    fn a_percentile_is_a_value_that_was_seen() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 50), 100.0);
        assert_eq!(percentile(&values, 99), 198.0);
        assert_eq!(percentile(&[7.0], 99), 7.0);
        assert!(percentile(&[], 50).is_nan());
    }

    #[test]
    fn a_target_is_held_in_its_direction() {
        let figure = |better| Figure::new("c", "u", (&[9.0], &[10.0]), "p", (1.0, better));
        assert_eq!(figure(Better::Lower).holds(), Some(true));
        assert_eq!(figure(Better::Higher).holds(), Some(false));
    }

    #[test]
    fn a_target_can_be_a_distance_or_a_value() {
        let check = |target: Target, expect: Option<bool>| {
            let figure = Figure::alone("c", "ms", &[130.0], Better::Lower).target(target);
            assert_eq!(figure.beside("p", &[100.0]).holds(), expect, "{target:?}");
        };
        check(Target::OverPeer(50.0), Some(true));
        check(Target::OverPeer(20.0), Some(false));
        check(Target::Value(130.0), Some(true));
        check(Target::Value(129.0), Some(false));
        let alone = Figure::alone("c", "ms", &[130.0], Better::Lower);
        assert_eq!(alone.clone().holds(), None);
        assert_eq!(alone.target(Target::OverPeer(50.0)).holds(), None, "no peer");
    }
}

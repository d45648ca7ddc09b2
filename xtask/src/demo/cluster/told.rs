//! Pure. What a guest's ticks tell: how long it was silent, and that it ran once.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail};

/// A tick that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tick {
    at: Duration,
    number: u64,
    /// When it was sent, by the guest's clock.
    sent: u64,
    /// Another one when the guest was started anew.
    start: u64,
}

/// What some ticks in a row tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub heard: usize,
    /// Numbers of which nothing was heard.
    pub lost: u64,
    pub last: u64,
    pub longest_gap: Duration,
}

impl Tick {
    /// From `NUMBER NANOSECONDS START`, as `guest-tool heartbeat` sends it.
    pub fn parse(text: &str, at: Duration) -> Option<Tick> {
        let mut words = text.split_whitespace();
        let number = words.next()?.parse().ok()?;
        let sent = words.next()?.parse().ok()?;
        let start = u64::from_str_radix(words.next()?, 16).ok()?;
        words.next().is_none().then_some(Tick { at, number, sent, start })
    }
}

/// An error if there were two guests, or one that began anew.
pub fn tell(ticks: &[Tick]) -> Result<Told> {
    let (Some(first), Some(last)) = (ticks.first(), ticks.last()) else {
        bail!("expected ticks of the guest, but there are none");
    };
    if ticks.iter().any(|tick| tick.start != first.start) {
        bail!("expected one guest that goes on, but it was started anew");
    }
    let mut sent: BTreeMap<u64, u64> = BTreeMap::new();
    for tick in ticks {
        if sent.insert(tick.number, tick.sent).is_some_and(|before| before != tick.sent) {
            bail!("expected one guest, but tick {} was sent twice", tick.number);
        }
    }
    let numbers = last.number.max(first.number) - first.number.min(last.number) + 1;
    let gaps = ticks.iter().zip(ticks.iter().skip(1)).map(|(a, b)| b.at.saturating_sub(a.at));
    Ok(Told {
        heard: ticks.len(),
        lost: numbers.saturating_sub(sent.len() as u64),
        last: last.number,
        longest_gap: gaps.max().unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `AT:NUMBER@SENT/START`, times in milliseconds.
    fn ticks(text: &str) -> Vec<Tick> {
        let tick = |word: &str| {
            let n: Vec<u64> = word.split([':', '@', '/']).map(|n| n.parse().unwrap()).collect();
            Tick { at: Duration::from_millis(n[0]), number: n[1], sent: n[2], start: n[3] }
        };
        text.split_whitespace().map(tick).collect()
    }

    #[test]
    fn a_tick_is_three_words() {
        let tick = Tick::parse("7 35 00ff\n", Duration::ZERO);
        assert_eq!(tick, Some(Tick { at: Duration::ZERO, number: 7, sent: 35, start: 255 }));
        for bad in ["", "7 35", "7 35 xyz", "7 35 ff more"] {
            assert_eq!(Tick::parse(bad, Duration::ZERO), None, "{bad}");
        }
    }

    #[test]
    fn a_move_is_a_gap_and_what_was_lost_meanwhile() {
        let told = tell(&ticks("10:3@15/1 15:4@20/1 60:7@35/1 65:8@40/1")).unwrap();
        let longest_gap = Duration::from_millis(45);
        assert_eq!(told, Told { heard: 4, lost: 2, last: 8, longest_gap });
    }

    #[test]
    fn two_guests_and_new_ones_are_seen() {
        let check = |text: &str, expect: &str| {
            let error = tell(&ticks(text)).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        };
        check("1:1@5/1 2:2@10/1 9:3@15/1 10:3@17/1", "tick 3 was sent twice");
        check("1:1@5/1 2:2@10/1 90:1@5/2", "started anew");
        check("", "there are none");
        assert_eq!(tell(&ticks("1:1@5/1 2:1@5/1")).unwrap().lost, 0);
    }
}

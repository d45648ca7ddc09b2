//! Pure. What a guest's heartbeats tell (`guest-tool heartbeat`).
//!
//! A guest that was copied and runs twice has one incarnation and sends its numbers
//! twice, at different moments of its own clock. One that was started anew while the
//! old one ran has two incarnations, and the old one is heard after the new one.

use std::collections::BTreeMap;
use std::time::Duration;

/// A heartbeat that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// When it arrived, by the clock of who listens.
    pub at: Duration,
    pub sequence: u64,
    /// When it was sent, by the guest's clock.
    pub sent: Duration,
    pub incarnation: u64,
}

impl Beat {
    /// From `SEQUENCE NANOSECONDS INCARNATION`.
    pub fn parse(text: &str, at: Duration) -> Option<Beat> {
        let mut words = text.split_whitespace();
        let sequence = words.next()?.parse().ok()?;
        let sent = Duration::from_nanos(words.next()?.parse().ok()?);
        let incarnation = u64::from_str_radix(words.next()?, 16).ok()?;
        words.next().is_none().then_some(Beat { at, sequence, sent, incarnation })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub beats: usize,
    /// The longest time in which none arrived, between two that did.
    pub longest_silence: Duration,
    /// When that began.
    pub silent_since: Duration,
    /// Numbers that were skipped, up to the highest that arrived.
    pub lost: u64,
    /// Datagrams that the network delivered more than once.
    pub duplicated: u64,
    /// In the order in which they were first heard of.
    pub incarnations: Vec<u64>,
    /// Why there must have been two guests at once.
    pub ran_twice: Option<String>,
}

/// What all of them tell, in the order of their arrival.
pub fn report(beats: &[Beat]) -> Report {
    let at: Vec<Duration> = beats.iter().map(|b| b.at).collect();
    let (silent_since, longest_silence) = longest(&at).unwrap_or_default();
    let mut seen: BTreeMap<(u64, u64), Duration> = BTreeMap::new();
    let mut duplicated = 0;
    let mut incarnations: Vec<u64> = Vec::new();
    let mut ran_twice = None;
    for beat in beats {
        let &Beat { incarnation, sequence, sent, .. } = beat;
        match incarnations.iter().position(|&i| i == incarnation) {
            None => incarnations.push(incarnation),
            Some(n) if n + 1 < incarnations.len() => {
                ran_twice.get_or_insert(format!(
                    "{incarnation:x} sent {sequence} after {:x} had begun",
                    incarnations[n + 1]
                ));
            }
            Some(_) => {}
        }
        match seen.insert((incarnation, sequence), sent) {
            Some(before) if before == sent => duplicated += 1,
            Some(before) => {
                ran_twice.get_or_insert(format!(
                    "{incarnation:x} sent {sequence} at {before:?} and at {sent:?} of its clock"
                ));
            }
            None => {}
        }
    }
    let lost = incarnations.iter().map(|&i| lost(&seen, i)).sum();
    let beats = beats.len();
    Report { beats, longest_silence, silent_since, lost, duplicated, incarnations, ran_twice }
}

/// When the longest time between two moments began, and how long it was.
pub fn longest(moments: &[Duration]) -> Option<(Duration, Duration)> {
    let pairs = moments.iter().zip(moments.iter().skip(1));
    pairs.map(|(a, b)| (*a, b.saturating_sub(*a))).max_by_key(|(_, gap)| *gap)
}

fn lost(seen: &BTreeMap<(u64, u64), Duration>, incarnation: u64) -> u64 {
    let of = || seen.range((incarnation, 0)..=(incarnation, u64::MAX)).map(|((_, n), _)| *n);
    match (of().next(), of().next_back()) {
        (Some(first), Some(last)) => last - first + 1 - of().count() as u64,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// `AT:SEQUENCE@SENT/INCARNATION`, times in milliseconds.
    fn beats(text: &str) -> Vec<Beat> {
        let beat = |word: &str| {
            let numbers: Vec<u64> =
                word.split([':', '@', '/']).map(|n| n.parse().unwrap()).collect();
            Beat {
                at: ms(numbers[0]),
                sequence: numbers[1],
                sent: ms(numbers[2]),
                incarnation: numbers[3],
            }
        };
        text.split_whitespace().map(beat).collect()
    }

    #[test]
    fn a_heartbeat_is_three_words() {
        let beat = Beat::parse("7 35000000 00ff\n", ms(1));
        let expect = Beat { at: ms(1), sequence: 7, sent: ms(35), incarnation: 255 };
        assert_eq!(beat, Some(expect));
        for bad in ["", "7", "7 35", "7 35 xyz", "7 35 ff more"] {
            assert_eq!(Beat::parse(bad, ms(1)), None, "{bad}");
        }
    }

    #[test]
    fn a_move_is_a_silence_and_what_was_lost_meanwhile() {
        let report = report(&beats("10:3@15/1 15:4@20/1 60:7@35/1 65:8@40/1"));
        assert_eq!((report.longest_silence, report.silent_since), (ms(45), ms(15)));
        assert_eq!((report.lost, report.duplicated, report.beats), (2, 0, 4));
        assert_eq!((report.incarnations, report.ran_twice), (vec![1], None));
    }

    #[test]
    fn the_networks_duplicates_are_not_a_second_guest() {
        let report = report(&beats("1:1@5/1 2:2@10/1 3:1@5/1 4:3@15/1"));
        assert_eq!((report.duplicated, report.lost, report.ran_twice), (1, 0, None));
    }

    #[test]
    fn a_copy_that_goes_on_is_seen() {
        let twice = report(&beats("1:1@5/1 2:2@10/1 9:3@15/1 10:3@17/1")).ran_twice;
        assert_eq!(twice.unwrap(), "1 sent 3 at 15ms and at 17ms of its clock");
    }

    #[test]
    fn a_restart_is_right_and_an_old_one_that_lives_on_is_not() {
        let restart = report(&beats("1:1@5/1 2:2@10/1 90:1@5/2 95:2@10/2"));
        assert_eq!((restart.incarnations, restart.ran_twice), (vec![1, 2], None));
        let twice = report(&beats("1:1@5/1 2:2@10/1 3:1@5/2 4:3@15/1")).ran_twice;
        assert_eq!(twice.unwrap(), "1 sent 3 after 2 had begun");
    }

    #[test]
    fn nothing_tells_nothing() {
        let report = report(&[]);
        assert_eq!((report.beats, report.lost, report.longest_silence), (0, 0, Duration::ZERO));
    }
}

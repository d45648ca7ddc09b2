//! Pure. Who may touch which part of a disk while it is mirrored: requests that
//! overlap go one after the other, in the order in which they came; all others at
//! the same time. So both sides see overlapping writes in the same order, and the
//! copy of a part never runs beside a write to it.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

/// A request's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// What is going on and what waits.
#[derive(Debug, Default)]
pub struct Order {
    next: u64,
    going: BTreeMap<Ticket, Vec<Range<u64>>>,
    waiting: VecDeque<(Ticket, Vec<Range<u64>>)>,
}

fn overlap(a: &[Range<u64>], b: &[Range<u64>]) -> bool {
    a.iter().any(|a| b.iter().any(|b| a.start < b.end && b.start < a.end))
}

impl Order {
    /// A request comes; true if it may go at once.
    pub fn ask(&mut self, parts: Vec<Range<u64>>) -> (Ticket, bool) {
        let ticket = Ticket(self.next);
        self.next += 1;
        let clear = self.going.values().all(|other| !overlap(other, &parts))
            && self.waiting.iter().all(|(_, other)| !overlap(other, &parts));
        if clear {
            self.going.insert(ticket, parts);
        } else {
            self.waiting.push_back((ticket, parts));
        }
        (ticket, clear)
    }

    /// A request has ended, or does not want to go any more; those that may go now.
    pub fn done(&mut self, ticket: Ticket) -> Vec<Ticket> {
        self.going.remove(&ticket);
        self.waiting.retain(|(other, _)| *other != ticket);
        let mut next = Vec::new();
        let mut still: VecDeque<(Ticket, Vec<Range<u64>>)> = VecDeque::new();
        for (ticket, parts) in std::mem::take(&mut self.waiting) {
            let clear = self.going.values().all(|other| !overlap(other, &parts))
                && still.iter().all(|(_, other)| !overlap(other, &parts));
            if clear {
                self.going.insert(ticket, parts);
                next.push(ticket);
            } else {
                still.push_back((ticket, parts));
            }
        }
        self.waiting = still;
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(part: Range<u64>) -> Vec<Range<u64>> {
        vec![part]
    }

    #[test]
    fn what_overlaps_waits_and_no_one_is_overtaken() {
        let mut order = Order::default();
        let (a, go) = order.ask(one(0..10));
        assert!(go);
        let (b, go) = order.ask(one(5..20));
        assert!(!go);
        let (c, go) = order.ask(one(15..30));
        assert!(!go, "it would overtake the second");
        let (d, go) = order.ask(vec![40..50, 60..70]);
        assert!(go);
        assert_eq!(order.done(d), []);
        assert_eq!(order.done(a), [b]);
        assert_eq!(order.done(b), [c]);
        assert_eq!(order.done(c), []);
    }

    proptest! {
        #[test]
        fn overlapping_requests_never_run_together_and_all_run(
            asks in proptest::collection::vec((0u64..50, 1u64..20), 1..60),
            picks in proptest::collection::vec(any::<proptest::sample::Index>(), 60),
        ) {
            let mut order = Order::default();
            let mut parts = BTreeMap::new();
            let (mut going, mut ended) = (Vec::new(), Vec::new());
            let mut asks = asks.into_iter();
            let mut picks = picks.into_iter().cycle();
            loop {
                if let Some((at, len)) = asks.next() {
                    let (ticket, go) = order.ask(one(at..at + len));
                    parts.insert(ticket, at..at + len);
                    if go { going.push(ticket) }
                } else if going.is_empty() {
                    break;
                }
                for (n, a) in going.iter().enumerate() {
                    for b in &going[n + 1..] {
                        prop_assert!(!overlap(&[parts[a].clone()], &[parts[b].clone()]));
                    }
                }
                if !going.is_empty() && going.len() % 3 != 1 || asks.len() == 0 && !going.is_empty() {
                    let ticket = going.swap_remove(picks.next().unwrap().index(going.len()));
                    // Everything older that overlaps it has ended.
                    for (other, range) in parts.range(..ticket) {
                        if overlap(std::slice::from_ref(range), std::slice::from_ref(&parts[&ticket])) {
                            prop_assert!(ended.contains(other));
                        }
                    }
                    ended.push(ticket);
                    going.extend(order.done(ticket));
                }
            }
            prop_assert_eq!(ended.len(), parts.len());
        }
    }
}

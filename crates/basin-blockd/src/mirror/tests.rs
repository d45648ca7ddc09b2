//! The order of writes and copies against a model: a disk of a few chunks on two
//! sides, where every single sector of every request arrives at a moment of its own,
//! in any order that [`Order`] and [`Map`] allow. Whatever the interleaving, both
//! sides are the same in the end wherever the map says so, and the source is what a
//! guest may expect.

use std::collections::HashMap;
use std::ops::Range;

use proptest::prelude::*;

use super::map::{CHUNK, Map};
use super::order::{Order, Ticket};

/// The model's disk: sectors of a sixteenth of a chunk.
const SECTOR: u64 = CHUNK / 16;
const CHUNKS: u64 = 5;
const SECTORS: u64 = CHUNKS * 16;

#[derive(Debug)]
enum Kind {
    /// A value for all sectors; whether the source's device fails half-way.
    Write {
        value: u64,
        fails: bool,
    },
    Copy {
        buffer: Vec<Option<u64>>,
    },
}

#[derive(Debug)]
struct Going {
    ticket: Ticket,
    range: Range<u64>,
    kind: Kind,
    /// Single effects that are still to come: on the source (or of reading it), and
    /// on the target.
    here: Vec<u64>,
    there: Vec<u64>,
}

struct World {
    source: Vec<u64>,
    target: Vec<u64>,
    order: Order,
    map: Map,
    waiting: HashMap<Ticket, (Range<u64>, Kind)>,
    going: Vec<Going>,
}

fn sectors(range: &Range<u64>) -> Vec<u64> {
    (range.start / SECTOR..range.end / SECTOR).collect()
}

impl World {
    fn new() -> World {
        World {
            source: (0..SECTORS).map(|n| n + 1).collect(),
            target: vec![0; SECTORS as usize],
            order: Order::default(),
            map: Map::new(SECTORS * SECTOR),
            waiting: HashMap::new(),
            going: Vec::new(),
        }
    }

    fn ask(&mut self, range: Range<u64>, kind: Kind) {
        let (ticket, go) = self.order.ask(vec![range.clone()]);
        self.waiting.insert(ticket, (range, kind));
        if go {
            self.go(ticket);
        }
    }

    fn go(&mut self, ticket: Ticket) {
        let (range, kind) = self.waiting.remove(&ticket).unwrap();
        let here = sectors(&range);
        let there = match &kind {
            Kind::Write { .. } => self.map.parts(&range).iter().flat_map(sectors).collect(),
            Kind::Copy { .. } => Vec::new(),
        };
        self.going.push(Going { ticket, range, kind, here, there });
    }

    fn copy(&mut self, most: u64) {
        if let Some(range) = self.map.take(most) {
            let range = self.map.keep(&range, most * CHUNK);
            let buffer = vec![None; SECTORS as usize];
            self.ask(range, Kind::Copy { buffer });
        }
    }

    /// One sector of one request, or its end.
    fn step(&mut self, pick: usize, which: usize) {
        if self.going.is_empty() {
            return;
        }
        let n = pick % self.going.len();
        let going = &mut self.going[n];
        let total = going.here.len() + going.there.len();
        if total > 0 {
            let k = which % total;
            match &mut going.kind {
                Kind::Write { value, fails } => {
                    if k < going.here.len() {
                        let sector = going.here.swap_remove(k);
                        if !(*fails && sector.is_multiple_of(2)) {
                            self.source[sector as usize] = *value;
                        }
                    } else {
                        let sector = going.there.swap_remove(k - going.here.len());
                        self.target[sector as usize] = *value;
                    }
                }
                Kind::Copy { buffer } => {
                    if k < going.here.len() {
                        let sector = going.here.swap_remove(k);
                        buffer[sector as usize] = Some(self.source[sector as usize]);
                        going.there.push(sector);
                    } else {
                        let sector = going.there.swap_remove(k - going.here.len());
                        self.target[sector as usize] = buffer[sector as usize].unwrap();
                    }
                }
            }
            return;
        }
        let going = self.going.swap_remove(n);
        match going.kind {
            Kind::Write { fails: true, .. } => self.map.spoil(&going.range),
            Kind::Write { .. } => {}
            Kind::Copy { .. } => self.map.settle(&going.range, true),
        }
        for next in self.order.done(going.ticket) {
            self.go(next);
        }
        self.check();
    }

    /// Where nothing is under way and the map says so, both sides are the same.
    fn check(&self) {
        for part in self.map.parts(&(0..SECTORS * SECTOR)) {
            for sector in sectors(&part) {
                let busy = |g: &Going| sectors(&g.range).contains(&sector);
                if !self.going.iter().any(busy) {
                    let n = sector as usize;
                    assert_eq!(self.source[n], self.target[n], "sector {sector}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn both_sides_are_the_same_in_the_end(
        actions in proptest::collection::vec(
            (0u8..10, 0u64..SECTORS, 1u64..24, any::<u16>(), any::<u16>()), 20..500),
    ) {
        let mut world = World::new();
        let mut value = 1000;
        for (action, at, len, pick, which) in actions {
            match action {
                0 | 1 => {
                    value += 1;
                    let range = at * SECTOR..(at + len).min(SECTORS) * SECTOR;
                    world.ask(range, Kind::Write { value, fails: false });
                }
                2 if len == 1 => {
                    value += 1;
                    let range = at * SECTOR..(at + 3).min(SECTORS) * SECTOR;
                    world.ask(range, Kind::Write { value, fails: true });
                }
                2 | 3 => world.copy(1 + len % 3),
                _ => world.step(pick.into(), which.into()),
            }
        }
        // Everything comes to its end, and one more copy of what is left is enough.
        let mut n = 0;
        while !world.going.is_empty() {
            n += 7;
            world.step(n, n / 3);
        }
        prop_assert!(world.waiting.is_empty());
        while !world.map.complete() {
            world.copy(2);
            while !world.going.is_empty() {
                n += 5;
                world.step(n, n);
            }
        }
        prop_assert_eq!(world.source, world.target);
    }
}

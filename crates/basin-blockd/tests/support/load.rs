//! A guest that writes all the time and knows what it was promised.

use std::collections::HashMap;

use super::driver::*;
use super::{pattern, until};

/// Each slot of each queue writes to places of its own.
const PLACE: u64 = DATA / 512;

pub struct Load {
    pub guest: Guest,
    size: u64,
    queues: usize,
    /// The last seed that was acknowledged and the one that is under way, by place.
    acked: HashMap<u64, u64>,
    open: HashMap<(usize, u16), (u64, u64)>,
    pub seed: u64,
}

fn len(seed: u64) -> usize {
    [512, 4096, 65536][(seed % 3) as usize]
}

impl Load {
    /// Two queues.
    pub fn new(guest: Guest, size: u64) -> Load {
        Load { guest, size, queues: 2, acked: HashMap::new(), open: HashMap::new(), seed: 0 }
    }

    /// Puts a write into every free slot.
    pub fn fill(&mut self, q: usize) {
        while let Some(slot) = self.guest.free_slot(q) {
            self.seed += 1;
            let lanes = self.queues as u64 * u64::from(SLOTS);
            let lane = q as u64 * u64::from(SLOTS) + u64::from(slot);
            let rounds = (self.size / DATA / lanes).max(1);
            let place = (lane + lanes * (self.seed % rounds)) % (self.size / DATA);
            let bytes = pattern(self.seed, len(self.seed));
            let sent = self.guest.send(q, WRITE, place * PLACE, Data::Out(&bytes));
            assert_eq!(sent, slot);
            self.open.insert((q, slot), (place, self.seed));
        }
    }

    pub fn fill_all(&mut self, link: &Link) {
        for q in 0..self.queues {
            self.fill(q);
            link.kick(q);
        }
    }

    pub fn reap(&mut self, q: usize) {
        for answer in self.guest.reap(q) {
            assert_eq!(answer.status, 0, "an I/O error reached the guest");
            let (place, seed) = self.open.remove(&(q, answer.slot)).unwrap();
            self.acked.insert(place, seed);
        }
    }

    pub fn reap_all(&mut self) {
        (0..self.queues).for_each(|q| self.reap(q));
    }

    /// Writes until `count` more writes were begun.
    pub fn work(&mut self, link: &Link, count: u64) {
        let enough = self.seed + count;
        until("the writes", || {
            self.fill_all(link);
            self.reap_all();
            (self.seed >= enough).then_some(())
        });
    }

    pub fn all_answered(&mut self) -> bool {
        self.reap_all();
        self.open.is_empty()
    }

    /// Every acknowledged write is there, and no request was answered twice.
    pub fn verify(&mut self, link: &Link) {
        assert!(self.open.is_empty(), "writes are under way");
        assert_eq!(self.guest.strays(), 0, "answers that nobody asked for");
        for (place, seed) in &self.acked {
            let read = link.read(&mut self.guest, place * PLACE, len(*seed)).unwrap();
            assert!(
                read == pattern(*seed, len(*seed)),
                "the acknowledged write to place {place} is lost"
            );
        }
    }
}

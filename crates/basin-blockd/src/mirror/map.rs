//! Pure. Which parts of a disk are the same on both sides, in chunks.

use std::collections::BTreeSet;
use std::ops::Range;

/// What is copied at once. Small, because a guest's write to it waits that long.
pub const CHUNK: u64 = 256 << 10;

/// One bit a chunk.
#[derive(Debug)]
pub struct Map {
    size: u64,
    same: Vec<u64>,
    /// Chunks that are not the same.
    left: u64,
    /// Those that somebody copies.
    taken: BTreeSet<u64>,
    /// Where the search goes on.
    cursor: u64,
}

impl Map {
    /// Nothing is the same yet.
    pub fn new(size: u64) -> Map {
        let chunks = size.div_ceil(CHUNK);
        let same = vec![0; usize::try_from(chunks.div_ceil(64)).unwrap_or(usize::MAX)];
        Map { size, same, left: chunks, taken: BTreeSet::new(), cursor: 0 }
    }

    fn chunks(&self) -> u64 {
        self.size.div_ceil(CHUNK)
    }

    /// Of what a guest writes. A disk that has grown ends its mirror, and may be written to
    /// beyond its former end before that is done.
    fn chunks_of(&self, range: &Range<u64>) -> Range<u64> {
        range.start / CHUNK..range.end.div_ceil(CHUNK).min(self.chunks())
    }

    fn is_same(&self, chunk: u64) -> bool {
        self.same[(chunk / 64) as usize] & 1 << (chunk % 64) != 0
    }

    /// Bytes that are not the same.
    pub fn left(&self) -> u64 {
        (self.left * CHUNK).min(self.size)
    }

    pub fn complete(&self) -> bool {
        self.left == 0
    }

    /// The next chunks to copy, at most `most`, in a row; nobody else gets them until
    /// they are given back or settled.
    pub fn take(&mut self, most: u64) -> Option<Range<u64>> {
        let chunks = self.chunks();
        let free = |map: &Map, n: u64| !map.is_same(n) && !map.taken.contains(&n);
        let after = (self.cursor..chunks).find(|n| free(self, *n));
        let first = after.or_else(|| (0..self.cursor.min(chunks)).find(|n| free(self, *n)))?;
        let mut end = first + 1;
        while end < chunks && end - first < most && free(self, end) {
            end += 1;
        }
        self.taken.extend(first..end);
        self.cursor = end;
        Some(first * CHUNK..(end * CHUNK).min(self.size))
    }

    /// Keeps the first bytes of what was taken, whole chunks.
    pub fn keep(&mut self, range: &Range<u64>, len: u64) -> Range<u64> {
        let end = (range.start + len.div_ceil(CHUNK).max(1) * CHUNK).min(range.end);
        for chunk in end.div_ceil(CHUNK)..range.end.div_ceil(CHUNK) {
            self.taken.remove(&chunk);
            self.cursor = self.cursor.min(chunk);
        }
        range.start..end
    }

    /// What was taken was copied, or not.
    pub fn settle(&mut self, range: &Range<u64>, copied: bool) {
        for chunk in range.start / CHUNK..range.end.div_ceil(CHUNK) {
            self.taken.remove(&chunk);
            if copied && !self.is_same(chunk) {
                self.same[(chunk / 64) as usize] |= 1 << (chunk % 64);
                self.left -= 1;
            }
        }
    }

    /// Both sides may differ here from now on.
    pub fn spoil(&mut self, range: &Range<u64>) {
        for chunk in self.chunks_of(range) {
            if self.is_same(chunk) {
                self.same[(chunk / 64) as usize] &= !(1 << (chunk % 64));
                self.left += 1;
                self.cursor = self.cursor.min(chunk);
            }
        }
    }

    /// The parts of a write that the other side must get as well: those that are the
    /// same and are to stay so. The copy brings the others.
    pub fn parts(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut parts: Vec<Range<u64>> = Vec::new();
        for chunk in self.chunks_of(range) {
            if !self.is_same(chunk) {
                continue;
            }
            let start = (chunk * CHUNK).max(range.start);
            let end = ((chunk + 1) * CHUNK).min(range.end).min(self.size);
            if start >= end {
                continue;
            }
            match parts.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => parts.push(start..end),
            }
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_taken_once_and_then_all_is_the_same() {
        let size = 10 * CHUNK + 512;
        let mut map = Map::new(size);
        assert_eq!(map.left(), size);
        let first = map.take(4).unwrap();
        assert_eq!(first, 0..4 * CHUNK);
        let kept = map.keep(&first, CHUNK + 1);
        assert_eq!(kept, 0..2 * CHUNK);
        let mut runs = vec![kept];
        while let Some(run) = map.take(3) {
            runs.push(run);
        }
        let mut ends: Vec<_> = runs.iter().map(|r| (r.start, r.end)).collect();
        ends.sort_unstable();
        assert!(ends.windows(2).all(|w| w[0].1 == w[1].0), "{ends:?}");
        assert_eq!((ends[0].0, ends[ends.len() - 1].1), (0, size));
        runs.iter().for_each(|r| map.settle(r, true));
        assert!(map.complete() && map.take(1).is_none());
        assert_eq!(map.left(), 0);
    }

    #[test]
    fn what_is_spoilt_is_copied_again() {
        let mut map = Map::new(4 * CHUNK);
        let all = map.take(4).unwrap();
        map.settle(&all, true);
        map.spoil(&(CHUNK + 5..2 * CHUNK));
        assert_eq!(map.left(), CHUNK);
        assert_eq!(map.parts(&(0..4 * CHUNK)), [0..CHUNK, 2 * CHUNK..4 * CHUNK]);
        let run = map.take(4).unwrap();
        assert_eq!(run, CHUNK..2 * CHUNK);
        map.settle(&run, false);
        assert_eq!(map.take(4).unwrap(), run);
    }

    #[test]
    fn what_a_disk_has_grown_by_is_nobodys() {
        let size = 2 * CHUNK + 512;
        let mut map = Map::new(size);
        let all = map.take(3).unwrap();
        map.settle(&all, true);
        let within = 2 * CHUNK..size;
        assert_eq!(map.parts(&(2 * CHUNK..5 * CHUNK)), [within]);
        for beyond in [2 * CHUNK + 512..2 * CHUNK + 1024, 300 * CHUNK..301 * CHUNK] {
            assert!(map.parts(&beyond).is_empty(), "{beyond:?}");
        }
        map.spoil(&(300 * CHUNK..301 * CHUNK));
        assert!(map.complete());
        map.spoil(&(2 * CHUNK..5 * CHUNK));
        assert_eq!(map.left(), CHUNK);
    }

    #[test]
    fn a_write_goes_over_where_both_sides_are_the_same() {
        let mut map = Map::new(4 * CHUNK);
        assert!(map.parts(&(0..CHUNK)).is_empty());
        let run = map.take(2).unwrap();
        map.settle(&run, true);
        let within = CHUNK - 512..2 * CHUNK;
        assert_eq!(map.parts(&(CHUNK - 512..3 * CHUNK)), [within]);
    }
}

//! Pure. Zeros within data: what is allocated is not always worth sending.

use std::ops::Range;

/// Shorter runs of zeros are sent as they are.
const GRAIN: usize = 64 << 10;

/// The runs of `bytes`, each with whether it is all zeros.
pub fn runs(bytes: &[u8]) -> Vec<(Range<usize>, bool)> {
    let mut runs: Vec<(Range<usize>, bool)> = Vec::new();
    for (n, grain) in bytes.chunks(GRAIN).enumerate() {
        let (start, zero) = (n * GRAIN, is_zero(grain));
        let end = start + grain.len();
        match runs.last_mut() {
            Some((last, same)) if *same == zero => last.end = end,
            _ => runs.push((start..end, zero)),
        }
    }
    runs
}

fn is_zero(bytes: &[u8]) -> bool {
    // The first bytes tell in most cases; then wide steps.
    bytes.iter().take(16).all(|b| *b == 0)
        && bytes.chunks(128).all(|c| c.iter().fold(0, |all, b| all | b) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(len: usize, ones: &[usize], expect: &[(Range<usize>, bool)]) {
        let mut bytes = vec![0; len];
        ones.iter().for_each(|n| bytes[*n] = 1);
        assert_eq!(runs(&bytes), expect);
    }

    #[test]
    fn zeros_are_found_in_whole_grains() {
        check(0, &[], &[]);
        check(1000, &[], &[(0..1000, true)]);
        check(1000, &[999], &[(0..1000, false)]);
        check(
            4 * GRAIN,
            &[GRAIN + 7],
            &[(0..GRAIN, true), (GRAIN..2 * GRAIN, false), (2 * GRAIN..4 * GRAIN, true)],
        );
        check(2 * GRAIN, &[GRAIN - 1, 2 * GRAIN - 1], &[(0..2 * GRAIN, false)]);
    }
}

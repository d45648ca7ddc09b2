//! Pure. Was an acknowledged write lost?
//!
//! The writer goes round `blocks` blocks, one write at a time: write `n` lands on
//! block `(n - 1) % blocks`, and `n + 1` starts once `n` is acknowledged. So the disk
//! must hold, for every block, the last write that landed there at or before the
//! newest one found; only the block whose write was under way may hold anything.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing was ever written here.
    Blank,
    /// A whole record of the run that is checked.
    Sequence(u64),
    /// Anything else: torn, misplaced, of another run.
    Damaged,
}

/// The block that write `sequence` lands on.
pub fn block_of(sequence: u64, blocks: u64) -> u64 {
    (sequence - 1) % blocks
}

/// The newest write on the disk, or what is wrong with it.
pub fn verdict(found: &[Found], acked: u64) -> Result<u64, String> {
    let blocks = found.len() as u64;
    let newest = found
        .iter()
        .filter_map(|found| match found {
            Found::Sequence(sequence) => Some(*sequence),
            _ => None,
        })
        .max()
        .unwrap_or(0);
    if newest < acked {
        return Err(format!("write {acked} was acknowledged, the newest on the disk is {newest}"));
    }
    // The write that was under way when the writer stopped.
    let open = block_of(newest + 1, blocks);
    for (block, found) in (0..).zip(found) {
        if block == open {
            continue;
        }
        let wanted = match (newest.checked_sub(block + 1)).map(|past| past / blocks) {
            None => Found::Blank,
            Some(rounds) => Found::Sequence(rounds * blocks + block + 1),
        };
        if *found != wanted {
            return Err(format!("block {block} should hold {wanted:?}, holds {found:?}"));
        }
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `.` blank, `x` damaged, a number is that write.
    fn check(disk: &str, acked: u64, expect: Result<u64, &str>) {
        let found: Vec<Found> = disk
            .split_whitespace()
            .map(|word| match word {
                "." => Found::Blank,
                "x" => Found::Damaged,
                number => Found::Sequence(number.parse().unwrap()),
            })
            .collect();
        match (verdict(&found, acked), expect) {
            (Ok(newest), Ok(expected)) => assert_eq!(newest, expected, "{disk}"),
            (Err(error), Err(part)) => assert!(error.contains(part), "{disk}: {error}"),
            (got, expected) => panic!("{disk}: {got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn good_disks() {
        check(". . . .", 0, Ok(0));
        check("1 . . .", 1, Ok(1));
        check("1 2 3 4", 4, Ok(4));
        check("5 2 3 4", 5, Ok(5));
        check("5 6 3 4", 5, Ok(6)); // the sixth was on its way
    }

    #[test]
    fn the_write_under_way_may_be_torn() {
        check("x . . .", 0, Ok(0));
        check("1 2 x .", 2, Ok(2));
        check("5 x 3 4", 5, Ok(5));
    }

    #[test]
    fn lost_and_damaged_writes() {
        check("1 2 . .", 3, Err("write 3 was acknowledged, the newest on the disk is 2"));
        check("5 2 . 4", 5, Err("block 2 should hold Sequence(3), holds Blank"));
        check("5 6 3 x", 6, Err("block 3 should hold Sequence(4), holds Damaged"));
        check("9 6 3 8", 9, Err("block 2 should hold Sequence(7), holds Sequence(3)"));
        check("1 . 3 .", 3, Err("block 1"));
    }
}

//! Pure. What a generation file says: two places of 512 bytes, each a line of text
//! with a checksum, written in turn. The older one stays whole while the newer is
//! written, so a cut in the middle of a write loses nothing.

use basin_model::{Generation, VolumeId};

/// A device writes this much as a whole or not at all; and if not, the sum tells.
pub const PLACE: usize = 512;
const MAGIC: &str = "basin-generation 1";

/// Who wrote the volume last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Counts the writes; the higher of two places is the newer.
    pub serial: u64,
    pub generation: Generation,
    pub volume: VolumeId,
    /// The server, for the operator.
    pub by: String,
}

/// What a file's bytes amount to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing, or the beginning of a first write that was cut short.
    Nothing,
    Record(Record),
    /// Something else is in it.
    Garbage,
}

/// Looks at the bytes of a generation file.
pub fn read(bytes: &[u8]) -> Found {
    let places: Vec<&[u8]> = bytes.chunks(PLACE).collect();
    let newest = places.iter().take(2).filter_map(|p| parse(p)).max_by_key(|r| r.serial);
    match (newest, places.as_slice()) {
        (Some(record), _) => Found::Record(record),
        // The first write goes to the first place.
        (None, [] | [_]) => Found::Nothing,
        (None, [_, second, ..]) if second.iter().all(|b| *b == 0) => Found::Nothing,
        (None, _) => Found::Garbage,
    }
}

/// Where the record belongs, and its bytes.
pub fn write(record: &Record) -> (u64, [u8; PLACE]) {
    let by: String = record.by.chars().filter(|c| c.is_ascii_graphic()).take(100).collect();
    let Record { serial, generation, volume, .. } = record;
    let body =
        format!("{MAGIC} serial={serial} generation={} volume={volume} by={by}", generation.0);
    let line = format!("{body} sum={:016x}\n", sum(body.as_bytes()));
    let mut place = [b' '; PLACE];
    place[..line.len()].copy_from_slice(line.as_bytes());
    place[PLACE - 1] = b'\n';
    // Serial 1 is the first.
    let at = (serial.wrapping_sub(1) % 2) * PLACE as u64;
    (at, place)
}

fn parse(place: &[u8]) -> Option<Record> {
    if place.len() != PLACE {
        return None;
    }
    let line = std::str::from_utf8(place).ok()?.split('\n').next()?;
    let (body, stated) = line.rsplit_once(" sum=")?;
    if u64::from_str_radix(stated, 16).ok()? != sum(body.as_bytes()) {
        return None;
    }
    let rest = body.strip_prefix(MAGIC)?;
    let field =
        |name: &str| rest.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    Some(Record {
        serial: field("serial")?.parse().ok()?,
        generation: Generation(field("generation")?.parse().ok()?),
        volume: field("volume")?.parse().ok()?,
        by: field("by")?.to_owned(),
    })
}

/// FNV-1a: against accidents, not against malice.
fn sum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, b| (sum ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(serial: u64, generation: u64) -> Record {
        Record {
            serial,
            generation: Generation(generation),
            volume: "62617369-6e00-0000-0000-000000000000".parse().unwrap(),
            by: "server-1".into(),
        }
    }

    fn file(records: &[Record]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for r in records {
            put(&mut bytes, r, PLACE);
        }
        bytes
    }

    fn put(bytes: &mut Vec<u8>, record: &Record, cut: usize) {
        let (at, place) = write(record);
        let at = at as usize;
        bytes.resize(bytes.len().max(at + cut), 0);
        bytes[at..at + cut].copy_from_slice(&place[..cut]);
    }

    #[test]
    fn the_newer_place_counts() {
        assert_eq!(read(&file(&[record(1, 4)])), Found::Record(record(1, 4)));
        assert_eq!(read(&file(&[record(1, 4), record(2, 9)])), Found::Record(record(2, 9)));
        assert_eq!(
            read(&file(&[record(1, 4), record(2, 9), record(3, 10)])),
            Found::Record(record(3, 10))
        );
    }

    #[test]
    fn an_empty_or_cut_first_write_is_nothing() {
        assert_eq!(read(&[]), Found::Nothing);
        assert_eq!(read(&[0; 2 * PLACE]), Found::Nothing);
        assert_eq!(read(&[b'x'; 2 * PLACE]), Found::Garbage);
    }

    proptest! {
        #[test]
        fn a_write_that_is_cut_leaves_the_one_before(
            before in 1u64..50, cut in 0usize..PLACE, generations in 0u64..u64::MAX
        ) {
            let mut bytes = Vec::new();
            if before > 1 {
                put(&mut bytes, &record(before - 1, 1), PLACE);
            }
            put(&mut bytes, &record(before, generations), PLACE);
            let next = record(before + 1, 7);
            put(&mut bytes, &next, cut);
            // The rest of its line may have been there before: then nothing is missing.
            let (at, place) = write(&next);
            let line = place.iter().position(|b| *b == b'\n').unwrap();
            let there = bytes.get(at as usize..).and_then(|there| there.get(..=line));
            let whole = there == Some(&place[..=line]) && bytes.len() >= at as usize + PLACE;
            let old = record(before, generations);
            let last = if whole { next } else { old };
            prop_assert_eq!(read(&bytes), Found::Record(last));
        }

        #[test]
        fn a_first_write_that_is_cut_is_no_obstacle(cut in 0usize..PLACE) {
            let mut bytes = Vec::new();
            put(&mut bytes, &record(1, 7), cut);
            prop_assert_eq!(read(&bytes), Found::Nothing);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1100)) {
            let _ = read(&bytes);
        }
    }
}

//! Pure. One 4 KiB record that proves which write it came from.
//!
//! Magic, seed, sequence number and block, then filler made from them, then a
//! checksum over all of it. A record that was torn, misplaced or left over from
//! another run does not decode as what was expected.

pub const SIZE: usize = 4096;
const MAGIC: u64 = 0x3143_4552_4e53_4142; // "BASNREC1"
const BODY: usize = SIZE - 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    pub seed: u64,
    /// Counts from 1.
    pub sequence: u64,
    pub block: u64,
}

impl Record {
    pub fn encode(&self, out: &mut [u8; SIZE]) {
        let mut state = self.seed ^ self.sequence.rotate_left(32) ^ self.block;
        for (index, word) in out[..BODY].chunks_exact_mut(8).enumerate() {
            let value = match index {
                0 => MAGIC,
                1 => self.seed,
                2 => self.sequence,
                3 => self.block,
                _ => {
                    state = mix(state);
                    state
                }
            };
            word.copy_from_slice(&value.to_le_bytes());
        }
        let sum = checksum(&out[..BODY]);
        out[BODY..].copy_from_slice(&sum.to_le_bytes());
    }

    /// None when this is no whole record.
    pub fn decode(bytes: &[u8; SIZE]) -> Option<Record> {
        let word = |index: usize| {
            let mut buffer = [0; 8];
            buffer.copy_from_slice(&bytes[index * 8..index * 8 + 8]);
            u64::from_le_bytes(buffer)
        };
        let whole = word(0) == MAGIC && word(BODY / 8) == checksum(&bytes[..BODY]);
        whole.then(|| Record { seed: word(1), sequence: word(2), block: word(3) })
    }
}

fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb)
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes.chunks_exact(8).fold(SIZE as u64, |sum, chunk| {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: Record = Record { seed: 7, sequence: 42, block: 3 };

    #[test]
    fn a_record_decodes_to_itself() {
        let mut bytes = [0; SIZE];
        RECORD.encode(&mut bytes);
        assert_eq!(Record::decode(&bytes), Some(RECORD));
    }

    #[test]
    fn any_changed_byte_is_seen() {
        let mut bytes = [0; SIZE];
        RECORD.encode(&mut bytes);
        for index in 0..SIZE {
            bytes[index] ^= 0x10;
            assert_eq!(Record::decode(&bytes), None, "byte {index}");
            bytes[index] ^= 0x10;
        }
    }

    #[test]
    fn a_torn_record_is_seen() {
        let (mut old, mut new) = ([0; SIZE], [0; SIZE]);
        RECORD.encode(&mut old);
        Record { sequence: 43, ..RECORD }.encode(&mut new);
        for sector in 1..SIZE / 512 {
            let mut torn = old;
            torn[..sector * 512].copy_from_slice(&new[..sector * 512]);
            assert_eq!(Record::decode(&torn), None, "sector {sector}");
        }
        assert_eq!(Record::decode(&[0; SIZE]), None);
    }
}

//! Pure. Answers to requests: simple ones, and structured ones in chunks.

use super::{Errno, MAX_PAYLOAD, Malformed, Take, malformed};

const SIMPLE: u32 = 0x6744_6698;
const STRUCTURED: u32 = 0x668e_33ef;
/// Bytes before a simple reply's data, and before a chunk's.
pub const SIMPLE_HEADER: usize = 16;
pub const CHUNK_HEADER: usize = 20;
/// The last chunk of an answer.
const DONE: u16 = 1;

mod chunk {
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const ERROR: u16 = 1 << 15 | 1;
    pub const ERROR_OFFSET: u16 = 1 << 15 | 2;
}

/// Most descriptors of a status that are sent or taken.
pub const MAX_STATUS: usize = 4096;

/// Without data; an error if there is one.
pub fn simple(cookie: u64, error: Option<Errno>) -> Vec<u8> {
    let mut bytes = SIMPLE.to_be_bytes().to_vec();
    bytes.extend(error.map_or(0, |e| e as u32).to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes
}

fn one_chunk(kind: u16, cookie: u64, len: usize) -> Vec<u8> {
    let mut bytes = STRUCTURED.to_be_bytes().to_vec();
    bytes.extend(DONE.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend((len as u32).to_be_bytes());
    bytes
}

/// What comes before the data that were read, in one chunk.
pub fn data_head(cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = one_chunk(chunk::OFFSET_DATA, cookie, len as usize + 8);
    bytes.extend(offset.to_be_bytes());
    bytes
}

/// Lengths and flags, in order.
pub fn status(cookie: u64, context: u32, extents: &[(u32, u32)]) -> Vec<u8> {
    let mut bytes = one_chunk(chunk::BLOCK_STATUS, cookie, 4 + 8 * extents.len());
    bytes.extend(context.to_be_bytes());
    for (len, flags) in extents {
        bytes.extend(len.to_be_bytes());
        bytes.extend(flags.to_be_bytes());
    }
    bytes
}

pub fn error(cookie: u64, error: Errno, why: &str) -> Vec<u8> {
    let why = &why.as_bytes()[..why.len().min(200)];
    let mut bytes = one_chunk(chunk::ERROR, cookie, 6 + why.len());
    bytes.extend((error as u32).to_be_bytes());
    bytes.extend((why.len() as u16).to_be_bytes());
    bytes.extend(why);
    bytes
}

/// The first bytes of an answer, as the client takes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    Simple {
        cookie: u64,
        error: u32,
    },
    /// Four more bytes belong to the header, see [`chunk_len`].
    Chunk {
        cookie: u64,
        kind: u16,
        done: bool,
    },
}

impl Head {
    pub fn parse(bytes: [u8; SIMPLE_HEADER]) -> Result<Head, Malformed> {
        let mut take = Take(&bytes);
        match take.u32()? {
            SIMPLE => {
                let error = take.u32()?;
                Ok(Head::Simple { cookie: take.u64()?, error })
            }
            STRUCTURED => {
                let (flags, kind) = (take.u16()?, take.u16()?);
                Ok(Head::Chunk { cookie: take.u64()?, kind, done: flags & DONE != 0 })
            }
            _ => malformed("an answer without its magic number"),
        }
    }
}

pub fn chunk_len(bytes: [u8; 4]) -> Result<usize, Malformed> {
    let len = u32::from_be_bytes(bytes);
    // Data have their offset in front.
    if len > MAX_PAYLOAD + 8 {
        return malformed(format!("a chunk of {len} bytes"));
    }
    Ok(len as usize)
}

/// What a chunk says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunk<'a> {
    None,
    Data { offset: u64, data: &'a [u8] },
    Hole { offset: u64, len: u32 },
    Status { context: u32, extents: Vec<(u32, u32)> },
    Error { error: u32, why: String },
}

impl Chunk<'_> {
    pub fn parse(kind: u16, payload: &[u8]) -> Result<Chunk<'_>, Malformed> {
        let mut take = Take(payload);
        match kind {
            chunk::NONE => take.end().map(|()| Chunk::None),
            chunk::OFFSET_DATA => Ok(Chunk::Data { offset: take.u64()?, data: take.0 }),
            chunk::OFFSET_HOLE => {
                let hole = Chunk::Hole { offset: take.u64()?, len: take.u32()? };
                take.end().map(|()| hole)
            }
            chunk::BLOCK_STATUS => {
                let context = take.u32()?;
                let count = take.0.len() / 8;
                if count == 0 || count > MAX_STATUS {
                    return malformed(format!("a status of {count} extents"));
                }
                let mut extents = Vec::with_capacity(count);
                for _ in 0..count {
                    extents.push((take.u32()?, take.u32()?));
                }
                take.end().map(|()| Chunk::Status { context, extents })
            }
            chunk::ERROR | chunk::ERROR_OFFSET => {
                let error = take.u32()?;
                let len = take.u16()?;
                let why = String::from_utf8_lossy(take.bytes(len.into())?).into_owned();
                Ok(Chunk::Error { error: error.max(1), why })
            }
            kind if kind & 1 << 15 != 0 => {
                let error = take.u32()?;
                Ok(Chunk::Error { error: error.max(1), why: String::new() })
            }
            kind => malformed(format!("a chunk of the unknown kind {kind}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(bytes: &[u8], expect: Chunk<'_>) {
        let head = Head::parse(bytes[..SIMPLE_HEADER].try_into().unwrap()).unwrap();
        let Head::Chunk { cookie: 9, kind, done: true } = head else { panic!("{head:?}") };
        let len = chunk_len(bytes[SIMPLE_HEADER..CHUNK_HEADER].try_into().unwrap()).unwrap();
        assert_eq!(len, bytes.len() - CHUNK_HEADER);
        assert_eq!(Chunk::parse(kind, &bytes[CHUNK_HEADER..]), Ok(expect));
    }

    #[test]
    fn what_the_server_answers_the_client_understands() {
        let mut data = data_head(9, 512, 4);
        data.extend(b"data");
        check(&data, Chunk::Data { offset: 512, data: b"data" });
        let extents = vec![(512, 3), (1024, 0)];
        check(&status(9, 1, &extents), Chunk::Status { context: 1, extents });
        let why = "because".to_owned();
        check(&error(9, Errno::NoSpc, &why), Chunk::Error { error: 28, why });
        let bytes = simple(9, Some(Errno::Io)).try_into().unwrap();
        assert_eq!(Head::parse(bytes), Ok(Head::Simple { cookie: 9, error: 5 }));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(kind: u16, bytes in proptest::collection::vec(any::<u8>(), 0..100), small in 0u16..8) {
            let _ = Chunk::parse(kind, &bytes);
            let _ = Chunk::parse(small, &bytes);
            let _ = Chunk::parse(1 << 15 | small, &bytes);
            if let Ok(head) = bytes.get(..SIMPLE_HEADER).unwrap_or(&[]).try_into() {
                let _ = Head::parse(head);
            }
        }
    }
}

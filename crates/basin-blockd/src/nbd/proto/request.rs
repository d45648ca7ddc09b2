//! Pure. A request of the transmission phase.

use super::{Errno, MAX_PAYLOAD, MIN_BLOCK, Malformed, Take, malformed};

pub const HEADER: usize = 28;
const MAGIC: u32 = 0x2560_9513;

mod flag {
    pub const FUA: u16 = 1;
    pub const NO_HOLE: u16 = 2;
    pub const DF: u16 = 4;
    pub const REQ_ONE: u16 = 8;
}

/// What is asked. Lengths are in the [`Request`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Read,
    /// Stable when answered, if `fua`.
    Write {
        fua: bool,
    },
    /// The connection ends after what is in flight.
    Disconnect,
    Flush,
    Trim {
        fua: bool,
    },
    WriteZeroes {
        fua: bool,
        keep: bool,
    },
    /// At most one extent, if `one`.
    BlockStatus {
        one: bool,
    },
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    pub command: Command,
    pub cookie: u64,
    pub offset: u64,
    pub len: u32,
}

/// What a request is checked against.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub size: u64,
    pub read_only: bool,
}

impl Request {
    pub fn parse(bytes: [u8; HEADER]) -> Result<Request, Malformed> {
        let mut take = Take(&bytes);
        if take.u32()? != MAGIC {
            return malformed("a request without its magic number");
        }
        let (flags, kind, cookie) = (take.u16()?, take.u16()?, take.u64()?);
        let (offset, len) = (take.u64()?, take.u32()?);
        let fua = flags & flag::FUA != 0;
        let (command, known) = match kind {
            // Always in one piece here, whether asked or not.
            0 => (Command::Read, flag::DF | flag::FUA),
            1 => (Command::Write { fua }, flag::FUA),
            2 => (Command::Disconnect, u16::MAX),
            3 => (Command::Flush, flag::FUA),
            4 => (Command::Trim { fua }, flag::FUA),
            6 => {
                let keep = flags & flag::NO_HOLE != 0;
                (Command::WriteZeroes { fua, keep }, flag::FUA | flag::NO_HOLE)
            }
            7 => {
                let one = flags & flag::REQ_ONE != 0;
                (Command::BlockStatus { one }, flag::REQ_ONE | flag::FUA)
            }
            _ => (Command::Unknown, u16::MAX),
        };
        if matches!(command, Command::Write { .. }) && len > MAX_PAYLOAD {
            // What follows cannot be told from requests.
            return malformed(format!("a write of {len} bytes"));
        }
        let command = if flags & !known == 0 || matches!(command, Command::Write { .. }) {
            command
        } else {
            Command::Unknown
        };
        Ok(Request { command, cookie, offset, len })
    }

    pub fn bytes(&self) -> [u8; HEADER] {
        let fua_if = |fua: bool| if fua { flag::FUA } else { 0 };
        let (kind, flags): (u16, u16) = match self.command {
            Command::Read => (0, 0),
            Command::Write { fua } => (1, fua_if(fua)),
            Command::Disconnect => (2, 0),
            Command::Flush => (3, 0),
            Command::Trim { fua } => (4, fua_if(fua)),
            Command::WriteZeroes { fua, keep } => {
                (6, fua_if(fua) | if keep { flag::NO_HOLE } else { 0 })
            }
            Command::BlockStatus { one } => (7, if one { flag::REQ_ONE } else { 0 }),
            Command::Unknown => (u16::MAX, 0),
        };
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&kind.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }

    /// Bytes of data that follow the request.
    pub fn payload(&self) -> usize {
        match self.command {
            Command::Write { .. } => self.len as usize,
            _ => 0,
        }
    }

    /// Does it write?
    pub fn writes(&self) -> bool {
        matches!(
            self.command,
            Command::Write { .. } | Command::Trim { .. } | Command::WriteZeroes { .. }
        )
    }

    /// May it be carried out?
    pub fn check(&self, limits: Limits) -> Result<(), Errno> {
        let unit = u64::from(MIN_BLOCK);
        match self.command {
            Command::Flush | Command::Disconnect => return Ok(()),
            Command::Unknown => return Err(Errno::Inval),
            Command::Read if self.len > MAX_PAYLOAD => return Err(Errno::Overflow),
            _ => {}
        }
        if self.writes() && limits.read_only {
            return Err(Errno::Perm);
        }
        if self.len == 0
            || !self.offset.is_multiple_of(unit)
            || !u64::from(self.len).is_multiple_of(unit)
        {
            return Err(Errno::Inval);
        }
        match self.offset.checked_add(u64::from(self.len)) {
            Some(end) if end <= limits.size => Ok(()),
            _ if self.writes() => Err(Errno::NoSpc),
            _ => Err(Errno::Inval),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { size: 1 << 20, read_only: false };

    fn check(command: Command, offset: u64, len: u32, expect: Result<(), Errno>) {
        let request = Request { command, cookie: 7, offset, len };
        assert_eq!(Request::parse(request.bytes()), Ok(request));
        assert_eq!(request.check(LIMITS), expect, "{request:?}");
    }

    #[test]
    fn requests_are_held_to_the_disk() {
        let write = Command::Write { fua: true };
        check(Command::Read, 0, 512, Ok(()));
        check(Command::Read, 0, 1 << 20, Ok(()));
        check(Command::Read, 1 << 20, 512, Err(Errno::Inval));
        check(Command::Read, 1, 512, Err(Errno::Inval));
        check(Command::Read, 0, 100, Err(Errno::Inval));
        check(Command::Read, u64::MAX - 511, 512, Err(Errno::Inval));
        check(Command::Read, 0, MAX_PAYLOAD + 512, Err(Errno::Overflow));
        check(write, (1 << 20) - 512, 1024, Err(Errno::NoSpc));
        check(write, 0, 0, Err(Errno::Inval));
        check(Command::WriteZeroes { fua: false, keep: true }, 0, 1 << 20, Ok(()));
        check(Command::Trim { fua: true }, 0, 1 << 20, Ok(()));
        check(Command::BlockStatus { one: true }, 0, 1 << 20, Ok(()));
        check(Command::Flush, 99, 3, Ok(()));
        let read_only = Limits { read_only: true, ..LIMITS };
        let request = Request { command: write, cookie: 0, offset: 0, len: 512 };
        assert_eq!(request.check(read_only), Err(Errno::Perm));
    }

    #[test]
    fn a_write_without_bound_ends_the_connection() {
        let bad =
            Request { command: Command::Write { fua: false }, cookie: 0, offset: 0, len: u32::MAX };
        assert!(Request::parse(bad.bytes()).is_err());
    }

    proptest! {
        #[test]
        fn what_passes_lies_within_the_disk(mut bytes in any::<[u8; HEADER]>(), magic: bool, kind in 0u16..9) {
            if magic {
                bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
                bytes[6..8].copy_from_slice(&kind.to_be_bytes());
                // Often enough in range.
                bytes[16..22].fill(0);
                bytes[24..26].fill(0);
            }
            if let Ok(request) = Request::parse(bytes)
                && request.check(LIMITS).is_ok()
                && !matches!(request.command, Command::Flush | Command::Disconnect)
            {
                prop_assert!(request.offset + u64::from(request.len) <= LIMITS.size);
                prop_assert!(request.len > 0);
            }
        }
    }
}

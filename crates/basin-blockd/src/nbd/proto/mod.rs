//! Pure. The NBD protocol, newstyle fixed: bytes to meaning and back, for both sides.
//!
//! Every length that comes from the other side is checked against a bound before
//! anything is allocated for it; [`Malformed`] ends the connection, everything else
//! has an answer.

pub mod option;
pub mod reply;
pub mod request;

pub const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;

/// Flags of the server's greeting and the client's answer.
pub const FIXED_NEWSTYLE: u16 = 1;
pub const NO_ZEROES: u16 = 2;

/// Most data that a request may carry or ask for.
pub const MAX_PAYLOAD: u32 = 32 << 20;
/// Sizes and offsets are multiples of this.
pub const MIN_BLOCK: u32 = 512;
pub const PREFERRED_BLOCK: u32 = 64 << 10;

/// What a server says of an export.
pub mod export_flags {
    pub const HAS_FLAGS: u16 = 1;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
}

/// The other side does not speak the protocol, or means harm.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

pub fn malformed<T>(why: impl Into<String>) -> Result<T, Malformed> {
    Err(Malformed(why.into()))
}

/// An error in an answer to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    Perm = 1,
    Io = 5,
    Inval = 22,
    NoSpc = 28,
    Overflow = 75,
}

impl Errno {
    /// What the system says, in the protocol's few words.
    pub fn of(error: &std::io::Error) -> Errno {
        // ENOSPC, EDQUOT; the rest is nobody's business.
        match error.raw_os_error() {
            Some(28 | 122) => Errno::NoSpc,
            _ => Errno::Io,
        }
    }
}

/// What is where, as `base:allocation` says it.
pub mod allocation {
    pub const HOLE: u32 = 1;
    pub const ZERO: u32 = 2;
    pub const NAME: &str = "base:allocation";
}

/// A client that copies a whole disk says so, and who it is, by asking for a context
/// of this name and an id. It tells the server when all has been brought: by the end
/// of all its connections with [`request::Command::Disconnect`].
pub const MIRROR_CONTEXT: &str = "basin:mirror:";

/// Takes numbers and bytes off the front.
pub struct Take<'a>(pub &'a [u8]);

impl<'a> Take<'a> {
    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        match self.0.split_at_checked(n) {
            Some((taken, rest)) => {
                self.0 = rest;
                Ok(taken)
            }
            None => malformed("a message is shorter than its parts"),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let bytes = self.bytes(N)?;
        bytes.try_into().or_else(|_| malformed("a message is shorter than its parts"))
    }

    pub fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    /// A length and as much text.
    pub fn text(&mut self) -> Result<&'a str, Malformed> {
        let len = self.u32()?;
        let bytes = self.bytes(usize::try_from(len).unwrap_or(usize::MAX))?;
        std::str::from_utf8(bytes).or_else(|_| malformed("a name is not UTF-8"))
    }

    pub fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { malformed("a message is longer than its parts") }
    }
}

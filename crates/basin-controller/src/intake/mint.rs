//! Pure. Time and fresh identifiers, made by the caller: intake itself neither
//! reads a clock nor rolls dice, so that a test can say what comes out.

use basin_model::MacAddr;
use jiff::Timestamp;
use uuid::Uuid;

/// Makes identifiers at one moment.
pub struct Mint<'a> {
    pub now: Timestamp,
    uuid: &'a mut dyn FnMut() -> Uuid,
}

impl<'a> Mint<'a> {
    pub fn new(now: Timestamp, uuid: &'a mut dyn FnMut() -> Uuid) -> Mint<'a> {
        Mint { now, uuid }
    }

    /// A new identifier of any kind.
    pub fn uuid(&mut self) -> Uuid {
        (self.uuid)()
    }

    /// A MAC address out of 24 bits of a new identifier's random end.
    pub fn mac(&mut self) -> MacAddr {
        let [.., a, b, c] = *self.uuid().as_bytes();
        MacAddr::from_random([a, b, c])
    }
}

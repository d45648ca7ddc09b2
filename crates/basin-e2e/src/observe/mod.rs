//! What is seen of a guest from outside while something happens to it: how long it was
//! silent, what was lost, whether it ran twice.

mod beats;
mod collector;
mod ping;
mod transfer;

pub use beats::{Beat, Report, longest, report};
pub use collector::Collector;
pub use ping::Pinger;
pub use transfer::{Transfer, Transferred};

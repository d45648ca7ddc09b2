//! Live migration: how a running machine goes to another engine.
//!
//! The target is launched waiting ([`Engine::launch_incoming`](crate::Engine)), listens,
//! and runs the guest by itself once it has everything. The source is started towards it
//! and, as a rule, driven by a [`Drive`], whose judgement is the [`Pilot`].
//!
//! ```text
//!  source   Setup -> Active -> PreSwitchover -> Switching -> Completed
//!                      |   \______ held ______/     |          guest: MachineState::Migrated
//!                      |                            v
//!                      |                    (nothing is taken back)
//!                      +-> Postcopy -> Completed
//! ```
//!
//! Who may run the guest, exactly:
//! - Until [`Migrate::continue_switchover`] the source may cancel at any time: the target
//!   cannot have everything, and it ends when its stream breaks.
//! - After it the target may run at any moment, and the source is never resumed by this
//!   engine. A source whose target is known to be dead and never ran gets its guest back by
//!   [`Migrate::reclaim`].
//! - A source that *failed* runs again by itself: without post-copy that happens only when
//!   it could not hand its last byte to the kernel, so the target cannot have it all
//!   (decision 0123).
//! - A source is let go, and killed, when it is [`MachineState::Migrated`], never before: in
//!   post-copy it has pages that nobody else has until then.
//!
//! [`MachineState::Migrated`]: crate::MachineState::Migrated

mod drive;
mod key;
mod pilot;
mod types;

use std::net::{IpAddr, SocketAddr};

use async_trait::async_trait;

use crate::engine::EngineError;
use crate::hardware::Hardware;
pub use drive::{AlwaysOpen, Drive, DriveError, Gate, Moved, Progress};
pub use key::MigrationKey;
pub use pilot::{LastResort, Order, Outlook, Pilot, Policy, Postcopy};
pub use types::{
    Channel, Incoming, Limits, MigrationPhase, MigrationStatus, MigrationSupport, Outgoing, Ram,
    Throttle,
};

/// What a machine can do about its migration; every machine can.
#[async_trait]
pub trait Migrate: Send + Sync {
    /// What the guest has in its hands: a target is launched with the same.
    fn hardware(&self) -> Hardware;

    /// Where the migration stands: of the source, or of the target while it waits.
    async fn migration(&self) -> Result<MigrationStatus, EngineError>;

    // The target.

    /// Waits for a source at this address, on a port that is free, and returns it. Once a
    /// launch; asked again it tells the port it has.
    async fn listen(&self, address: IpAddr) -> Result<SocketAddr, EngineError>;

    /// Lets the guest's network cards tell their peers where they are now. A target does so
    /// by itself as its guest starts; again once its frames can pass, where they could not.
    async fn announce(&self) -> Result<(), EngineError>;

    /// Listens anew for the source of a post-copy whose connection broke.
    async fn listen_to_recover(&self, address: IpAddr) -> Result<SocketAddr, EngineError>;

    // The source.

    /// Begins. The guest goes on until the switch.
    async fn migrate(&self, outgoing: &Outgoing) -> Result<(), EngineError>;

    async fn set_limits(&self, limits: &Limits) -> Result<(), EngineError>;

    /// From [`MigrationPhase::PreSwitchover`]: sends the rest. From here on the target may
    /// run the guest.
    async fn continue_switchover(&self) -> Result<(), EngineError>;

    /// Gives up before the switch; the guest goes on here. Refused once the target may
    /// run. Idempotent: a migration that has ended otherwise stays as it ended.
    async fn cancel_migration(&self) -> Result<(), EngineError>;

    /// The guest goes over now, and fetches what is left there. No way back. The rest comes
    /// slowly until [`Migrate::set_limits`].
    async fn start_postcopy(&self) -> Result<(), EngineError>;

    /// Breaks a post-copy's connection that hangs: both sides keep what they have and wait
    /// in [`MigrationPhase::PostcopyPaused`]. On either side.
    async fn pause_postcopy(&self) -> Result<(), EngineError>;

    /// Connects again after the target listens again.
    async fn recover_postcopy(&self, to: SocketAddr) -> Result<(), EngineError>;

    /// Runs the guest here again after the switch. Only for who knows that the target is
    /// dead and never ran it.
    async fn reclaim(&self) -> Result<(), EngineError>;
}

//! The network between fake worlds, with faults to inject.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use basin_model::BytesPerSecond;

use super::machine::FakeMachine;

/// Where a fault happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultPoint {
    /// Nothing was copied yet.
    Start,
    /// Half of the memory is over.
    Copying,
    /// The guest is stopped, and the source waits to be told to go on.
    BeforeSwitch,
    /// The source was told to go on, and has sent nothing of the rest.
    Switching,
    /// The rest is sent; the target has not read it.
    Sent,
    /// The target runs the guest; its source has not been told.
    Running,
}

/// What happens there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    SourceDies,
    TargetDies,
    /// Nothing goes over any more, and nobody is told.
    LinkCut,
    /// The connection breaks, and both sides are told.
    LinkBroken,
}

/// The network between worlds. Clones are the same.
#[derive(Clone, Default)]
pub struct FakeLink(Arc<Mutex<Link>>);

pub(super) struct Link {
    pub(super) waiting: HashMap<SocketAddr, Weak<FakeMachine>>,
    pub(super) last_port: u16,
    pub(super) bandwidth: BytesPerSecond,
    fault: Option<(FaultPoint, Fault)>,
    pub(super) cut: bool,
}

impl Default for Link {
    fn default() -> Link {
        Link {
            waiting: HashMap::new(),
            last_port: 1024,
            bandwidth: BytesPerSecond::mib(1024),
            fault: None,
            cut: false,
        }
    }
}

impl FakeLink {
    pub fn set_bandwidth(&self, bandwidth: BytesPerSecond) {
        self.state().bandwidth = bandwidth;
    }

    /// The next migration that comes to `point` has this fault there.
    pub fn inject(&self, point: FaultPoint, fault: Fault) {
        self.state().fault = Some((point, fault));
    }

    /// Cuts the link, or mends it.
    pub fn cut(&self, cut: bool) {
        self.state().cut = cut;
    }

    pub(super) fn state(&self) -> MutexGuard<'_, Link> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn fault_at(&self, point: FaultPoint) -> Option<Fault> {
        let mut link = self.state();
        let (_, fault) = link.fault.take_if(|(at, _)| *at == point)?;
        Some(fault)
    }
}

//! Pure. The judgement that drives a migration: from what is seen to what is set.
//!
//! Memory is copied in passes. Each pass copies what was dirty at its begin, and what the
//! guest wrote meanwhile is the next pass. A guest that writes slower than the link makes
//! each pass shorter, down to a floor: what it writes while a pass is looked for and sent.
//! The best moment for the switch is when passes stop getting shorter; a fixed limit for
//! the downtime comes too early (a longer silence than needed) or never.
//!
//! So the pilot begins with a limit below the goal, watches how much each pass leaves, and
//! raises the limit to what the floor needs once it is reached. What the floor needs may be
//! more than the policy accepts: then post-copy, or a slower guest, or the end, as the
//! policy says. QEMU looks at a new limit ten times a second only, so the first limit
//! already suits most guests.

use std::time::Duration;

use basin_model::{Bytes, BytesPerSecond};

use super::{Limits, MigrationPhase, MigrationStatus, Ram, Throttle};

/// What the operator, or the cluster's policy, wants of a migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// How long the guest may stand still without anybody minding.
    pub downtime: Duration,
    /// How long it may stand still where less cannot be had.
    pub most_downtime: Duration,
    /// `None`: as fast as the link.
    pub bandwidth: Option<BytesPerSecond>,
    /// The guest may be slowed down.
    pub throttle: bool,
    pub postcopy: Postcopy,
    /// From the first copied byte.
    pub time_limit: Option<Duration>,
    /// When nothing above helps, or the time is up.
    pub last: LastResort,
    /// So long without a byte means that the link is gone.
    pub stall_limit: Duration,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            downtime: Duration::from_millis(30),
            // A guest that is slowed down until less suffices is out of breath for longer.
            most_downtime: Duration::from_secs(1),
            bandwidth: None,
            throttle: true,
            postcopy: Postcopy::Never,
            time_limit: None,
            last: LastResort::Stop,
            stall_limit: Duration::from_secs(10),
        }
    }
}

/// Whether the guest may go before all of its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Postcopy {
    Never,
    /// Where the guest writes too fast otherwise.
    Fallback,
    /// As soon as all of its memory was copied once.
    AtOnce,
}

/// What happens with a guest that cannot be moved within the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastResort {
    /// It stays.
    GiveUp,
    /// It stands still for as long as it takes.
    Stop,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    Set(Limits),
    StartPostcopy,
    GiveUp { why: String },
}

/// What is told to whoever waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outlook {
    pub bandwidth: BytesPerSecond,
    pub dirty_rate: BytesPerSecond,
    /// Until the switch, where it can be said.
    pub remaining_time: Option<Duration>,
    /// What the guest will be still for, as far as memory goes.
    pub downtime: Option<Duration>,
}

/// One migration's pilot.
#[derive(Debug, Clone)]
pub struct Pilot {
    policy: Policy,
    limits: Limits,
    stage: Stage,
    last: Option<Seen>,
    pass: Option<Pass>,
    /// Of the latest passes, what each left when it ended.
    left: Vec<Bytes>,
    dirty_rate: Option<f64>,
    speed: Option<f64>,
    moved_at: Duration,
    active_since: Option<Duration>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    at: Duration,
    ram: Ram,
}

#[derive(Debug, Clone, Copy)]
struct Pass {
    number: u64,
    begun: Duration,
}

/// What has been tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Copying,
    /// The limit was raised, to this guest's floor or to the most that is accepted.
    Waiting {
        since: Duration,
    },
    Throttling {
        since: Duration,
    },
    /// Nothing more is tried.
    Last,
}

/// How many passes are remembered.
const KEEP: usize = 4;
/// A pass within the goal that is not a fifth shorter than the one before is the floor.
const SHORTER: f64 = 0.8;
/// Beyond the goal, passes may get shorter slowly, for so long.
const SLOWLY: f64 = 0.95;
const WORTH_WAITING: Duration = Duration::from_secs(20);
/// QEMU needs to see a moment's mean below the limit, and the guest's writing varies.
const MARGIN: f64 = 1.3;
/// How long a new limit gets. QEMU looks at it every 100 ms.
const PATIENCE: Duration = Duration::from_millis(350);
/// How long slowing down gets; QEMU adds a step every second or two.
const THROTTLE_PATIENCE: Duration = Duration::from_secs(20);
/// By how much a guest is slowed down further, in percent.
const STEP: u8 = 10;
/// Passes that say nothing because they were too short to be seen well.
const LEAST_PASS: Duration = Duration::from_millis(1);

impl Pilot {
    pub fn new(policy: Policy) -> Pilot {
        let first = (policy.downtime / 8).max(Duration::from_millis(1));
        let limits =
            Limits { bandwidth: policy.bandwidth, downtime: first, throttle: Throttle::HARDLY };
        Pilot {
            policy,
            limits,
            stage: Stage::Copying,
            last: None,
            pass: None,
            left: Vec::new(),
            dirty_rate: None,
            speed: None,
            moved_at: Duration::ZERO,
            active_since: None,
        }
    }

    /// What the migration begins with.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Looks at the migration at a time that never goes back.
    pub fn step(&mut self, at: Duration, status: &MigrationStatus) -> Vec<Order> {
        let (MigrationPhase::Active, Some(ram)) = (&status.phase, status.ram) else {
            return Vec::new();
        };
        let since = *self.active_since.get_or_insert(at);
        self.observe(at, ram);
        if let Some(order) = self.stalled(at) {
            return vec![order];
        }
        if self.stage == Stage::Last {
            return Vec::new();
        }
        if self.policy.postcopy == Postcopy::AtOnce && ram.passes > 1 {
            self.stage = Stage::Last;
            return vec![Order::StartPostcopy];
        }
        if self.policy.time_limit.is_some_and(|limit| at.saturating_sub(since) >= limit) {
            let limit = self.policy.time_limit.unwrap_or_default();
            return self.last_resort(&format!("its time of {} s is up", limit.as_secs_f32()));
        }
        self.decide(at, ram, status.throttle)
    }

    pub fn outlook(&self) -> Outlook {
        let rate = |value: Option<f64>| BytesPerSecond(value.unwrap_or(0.0) as u64);
        let mut outlook = Outlook {
            bandwidth: rate(self.speed),
            dirty_rate: rate(self.dirty_rate),
            ..Outlook::default()
        };
        let (Some(seen), Some(speed)) = (self.last, self.speed.filter(|speed| *speed > 0.0)) else {
            return outlook;
        };
        let ratio = self.dirty_rate.unwrap_or(0.0) / speed;
        if ratio < 0.95 {
            // A geometric row: each pass is that part of the one before.
            let seconds = seen.ram.remaining.get() as f64 / speed / (1.0 - ratio);
            outlook.remaining_time = Duration::try_from_secs_f64(seconds).ok();
        }
        let floor = self.left.iter().min().map(|left| left.get() as f64 / speed);
        outlook.downtime = floor.and_then(|floor| Duration::try_from_secs_f64(floor).ok());
        outlook
    }

    /// Measures how fast memory goes over, and how fast it is written.
    fn observe(&mut self, at: Duration, ram: Ram) {
        let pass = *self.pass.get_or_insert(Pass { number: ram.passes, begun: at });
        if let Some(last) = self.last {
            let moved = ram.transferred != last.ram.transferred
                || ram.remaining != last.ram.remaining
                || ram.passes != last.ram.passes;
            if moved {
                self.moved_at = at;
            }
            let time = at.saturating_sub(last.at).as_secs_f64();
            let sent = ram.transferred.saturating_sub(last.ram.transferred).get() as f64;
            if time > 0.0 && sent > 0.0 {
                smooth(&mut self.speed, sent / time, (time / 0.1).min(1.0));
            }
        } else {
            self.moved_at = at;
        }
        if ram.passes != pass.number {
            let took = at.saturating_sub(pass.begun);
            let passes = (ram.passes.saturating_sub(pass.number)).max(1) as f64;
            if took >= LEAST_PASS {
                // The latest pass began a while ago: some of what it found is sent.
                let found = ram.remaining.get() as f64;
                smooth(&mut self.dirty_rate, found * passes / took.as_secs_f64(), 0.6);
            }
            self.left.push(ram.remaining);
            if self.left.len() > KEEP {
                self.left.remove(0);
            }
            self.pass = Some(Pass { number: ram.passes, begun: at });
        }
        self.last = Some(Seen { at, ram });
    }

    fn stalled(&mut self, at: Duration) -> Option<Order> {
        let still = at.saturating_sub(self.moved_at);
        if still < self.policy.stall_limit || self.stage == Stage::Last {
            return None;
        }
        self.stage = Stage::Last;
        let why = format!(
            "nothing went over for {} s: the link is cut, or the target hangs",
            still.as_secs()
        );
        Some(Order::GiveUp { why })
    }

    fn decide(&mut self, at: Duration, ram: Ram, throttle: u8) -> Vec<Order> {
        match self.stage {
            Stage::Waiting { since } if at.saturating_sub(since) < PATIENCE => return Vec::new(),
            Stage::Throttling { since } if at.saturating_sub(since) >= THROTTLE_PATIENCE => {
                return self.last_resort("it writes faster than the link, slowed down or not");
            }
            Stage::Throttling { .. } => return self.ease(throttle),
            Stage::Last => return Vec::new(),
            Stage::Copying | Stage::Waiting { .. } => {}
        }
        match self.floor(ram) {
            Some(floor) => self.raise(at, floor),
            None => Vec::new(),
        }
    }

    /// What a pass leaves, once it is not worth waiting for a shorter one.
    fn floor(&self, ram: Ram) -> Option<Bytes> {
        let [.., before, newest] = self.left.as_slice() else { return None };
        let speed = self.speed.filter(|speed| *speed > 0.0)?;
        let ratio = newest.get() as f64 / before.get().max(1) as f64;
        let seconds = newest.get() as f64 / speed;
        let worth = if seconds <= self.policy.downtime.as_secs_f64() {
            // Good enough; a much shorter one costs hardly any time.
            ratio < SHORTER
        } else {
            ratio < SLOWLY && seconds / (1.0 - ratio) < WORTH_WAITING.as_secs_f64()
        };
        // A pass under way may have left more since.
        (!worth).then_some((*before).max(*newest).min(ram.total.max(*newest)))
    }

    /// Sets a limit that this floor passes.
    fn raise(&mut self, at: Duration, floor: Bytes) -> Vec<Order> {
        let Some(speed) = self.speed.filter(|speed| *speed > 0.0) else { return Vec::new() };
        let exactly = floor.get() as f64 / speed;
        let most = self.policy.most_downtime;
        if exactly > most.as_secs_f64() {
            return self.too_fast(at);
        }
        let needed = Duration::try_from_secs_f64(exactly * MARGIN).unwrap_or(most);
        // What was not enough needs more than was thought.
        let again = matches!(self.stage, Stage::Waiting { .. });
        let least = if again { self.limits.downtime.mul_f64(1.5) } else { Duration::ZERO };
        if again && self.limits.downtime >= most {
            return self.too_fast(at);
        }
        self.stage = Stage::Waiting { since: at };
        let wanted = needed.max(least).min(most);
        if wanted <= self.limits.downtime {
            return Vec::new();
        }
        self.limits.downtime = wanted;
        vec![Order::Set(self.limits)]
    }

    /// The guest writes more than an accepted downtime can send.
    fn too_fast(&mut self, at: Duration) -> Vec<Order> {
        if self.policy.postcopy == Postcopy::Fallback {
            self.stage = Stage::Last;
            return vec![Order::StartPostcopy];
        }
        if !self.policy.throttle {
            return self.last_resort("it writes faster than the link");
        }
        self.stage = Stage::Throttling { since: at };
        self.limits.downtime = self.policy.most_downtime;
        let ratio = self.speed.unwrap_or(0.0) / self.dirty_rate.unwrap_or(f64::MAX).max(1.0);
        // Half of what the link carries.
        let percent = (100.0 * (1.0 - ratio / 2.0)).clamp(20.0, 95.0) as u8;
        // QEMU may be at its hardly noticed percent already; then it goes by a step.
        self.limits.throttle = Throttle { initial: percent, step: percent, most: 99 };
        vec![Order::Set(self.limits)]
    }

    /// Once QEMU has come to the first percentage: by small steps from there.
    fn ease(&mut self, throttle: u8) -> Vec<Order> {
        let Throttle { initial, step, .. } = self.limits.throttle;
        if step <= STEP || throttle < initial {
            return Vec::new();
        }
        self.limits.throttle.step = STEP;
        vec![Order::Set(self.limits)]
    }

    fn last_resort(&mut self, why: &str) -> Vec<Order> {
        self.stage = Stage::Last;
        if self.policy.postcopy == Postcopy::Fallback {
            return vec![Order::StartPostcopy];
        }
        match self.policy.last {
            LastResort::GiveUp => vec![Order::GiveUp { why: why.to_owned() }],
            LastResort::Stop => {
                self.limits.downtime = Duration::from_secs(2000);
                vec![Order::Set(self.limits)]
            }
        }
    }
}

/// Moves a mean towards a new value by its weight.
fn smooth(mean: &mut Option<f64>, value: f64, weight: f64) {
    *mean = Some(match *mean {
        Some(mean) => mean + (value - mean) * weight,
        None => value,
    });
}

#[cfg(test)]
#[path = "pilot_tests.rs"]
mod tests;

//! The pilot against a model of QEMU's copying, of a guest and of a link.

use std::time::Duration;

use basin_model::{Bytes, BytesPerSecond};
use proptest::prelude::*;

use super::*;

const MIB: f64 = 1_048_576.0;

/// QEMU 7.2 as far as it matters: passes, limits that are looked at every 100 ms, a
/// throttle that is raised every second while more is written than half of what is sent.
struct Model {
    memory: f64,
    /// What the guest writes again and again.
    hot: f64,
    writes: f64,
    link: f64,
    /// What every pass takes beside sending.
    overhead: f64,
    limits: Limits,
    may_throttle: bool,

    now: f64,
    remaining: f64,
    dirty: f64,
    transferred: f64,
    passes: u64,
    threshold: f64,
    bandwidth: f64,
    looked: f64,
    looked_transferred: f64,
    throttled_at: f64,
    throttle: u8,
}

#[derive(Debug, PartialEq)]
enum End {
    /// After so long, with the guest still for so long.
    Switched {
        after: Duration,
        gap: Duration,
    },
    Postcopy {
        after: Duration,
    },
    GaveUp {
        after: Duration,
        why: String,
    },
}

impl Model {
    fn new(memory_mib: f64, hot_mib: f64, writes_mib: f64, link_mib: f64) -> Model {
        let limits = Pilot::new(Policy::default()).limits();
        Model {
            memory: memory_mib * MIB,
            hot: hot_mib.min(memory_mib) * MIB,
            writes: writes_mib * MIB,
            link: link_mib * MIB,
            overhead: 0.004,
            limits,
            may_throttle: true,
            now: 0.0,
            remaining: memory_mib * MIB,
            dirty: 0.0,
            transferred: 0.0,
            passes: 1,
            threshold: 0.0,
            bandwidth: 0.0,
            looked: 0.0,
            looked_transferred: 0.0,
            throttled_at: 0.0,
            throttle: 0,
        }
    }

    fn rate(&self) -> f64 {
        self.limits.bandwidth.map_or(self.link, |limit| self.link.min(limit.get() as f64))
    }

    /// A millisecond passes; the gap when the guest was switched in it.
    fn tick(&mut self) -> Option<f64> {
        const TICK: f64 = 0.001;
        self.now += TICK;
        let sent = (self.rate() * TICK).min(self.remaining);
        self.remaining -= sent;
        self.transferred += sent;
        let writes = self.writes * (1.0 - f64::from(self.throttle) / 100.0);
        self.dirty = (self.dirty + writes * TICK).min(self.hot);
        if self.now - self.looked >= 0.1 {
            self.bandwidth =
                (self.transferred - self.looked_transferred) / (self.now - self.looked);
            self.threshold = self.bandwidth * self.limits.downtime.as_secs_f64();
            self.looked = self.now;
            self.looked_transferred = self.transferred;
        }
        if self.remaining > self.threshold {
            return None;
        }
        // A pass ends: what was written is looked for.
        self.now += self.overhead;
        self.dirty = (self.dirty + writes * self.overhead).min(self.hot);
        // After the first pass, what is not sent yet is of what is written again.
        let most = if self.passes > 1 { self.hot.max(self.remaining) } else { self.memory };
        self.remaining = (self.remaining + self.dirty).min(most);
        let written = std::mem::take(&mut self.dirty);
        self.passes += 1;
        if self.may_throttle && self.now - self.throttled_at >= 1.0 {
            self.throttled_at = self.now;
            if written > 0.5 * self.rate() * 0.1 {
                let Throttle { initial, step, most } = self.limits.throttle;
                let next = if self.throttle == 0 { initial } else { self.throttle + step };
                self.throttle = next.min(most);
            }
        }
        (self.remaining < self.threshold.max(1.0)).then(|| self.remaining / self.link)
    }

    fn status(&self) -> MigrationStatus {
        MigrationStatus {
            ram: Some(Ram {
                total: Bytes(self.memory as u64),
                remaining: Bytes(self.remaining as u64),
                transferred: Bytes(self.transferred as u64),
                bandwidth: BytesPerSecond(self.bandwidth as u64),
                dirty_rate: BytesPerSecond(0),
                passes: self.passes,
                page_requests: 0,
            }),
            throttle: self.throttle,
            ..MigrationStatus::of(MigrationPhase::Active)
        }
    }

    /// Lets the pilot look every `every` ms.
    fn run(mut self, policy: Policy, every: u64) -> End {
        let mut pilot = Pilot::new(policy);
        self.limits = pilot.limits();
        self.may_throttle = pilot.policy().throttle;
        for tick in 0.. {
            let time = |seconds: f64| Duration::from_secs_f64(seconds);
            if let Some(gap) = self.tick() {
                return End::Switched { after: time(self.now), gap: time(gap) };
            }
            if tick % every != 0 {
                continue;
            }
            for order in pilot.step(time(self.now), &self.status()) {
                match order {
                    Order::Set(limits) => self.limits = limits,
                    Order::StartPostcopy => return End::Postcopy { after: time(self.now) },
                    Order::GiveUp { why } => return End::GaveUp { after: time(self.now), why },
                }
            }
            assert!(self.now < 4000.0, "it does not end: {:?}", pilot);
        }
        unreachable!("an endless loop has ended")
    }
}

fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// With the default policy: switched within so many ms, still for at most so many.
fn check(model: Model, after_ms: u64, gap_ms: u64) {
    let end = model.run(Policy::default(), 5);
    let End::Switched { after, gap } = end else { panic!("{end:?}") };
    assert!(after <= millis(after_ms) && gap <= millis(gap_ms), "{after:?} {gap:?}");
}

#[test]
fn guests_of_the_benchmark_are_moved_soon_and_hardly_notice() {
    for memory in [256.0, 1024.0] {
        let copy = memory as u64 + 200;
        check(Model::new(memory, 1.0, 0.1, 1000.0), copy, 4);
        check(Model::new(memory, 40.0, 60.0, 1000.0), copy + 200, 5);
        check(Model::new(memory, 40.0, 200.0, 1000.0), copy + 500, 12);
        // As fast as it can, all over 40 MiB.
        check(Model::new(memory, 40.0, 2000.0, 1000.0), copy + 500, 60);
    }
}

#[test]
fn a_guest_that_writes_too_fast_is_slowed_down_or_goes_first_or_stays() {
    let model = || Model::new(4096.0, 3000.0, 900.0, 1000.0);
    let check = |policy: Policy, fits: &dyn Fn(&End) -> bool| {
        let end = model().run(policy.clone(), 5);
        assert!(fits(&end), "{policy:?}: {end:?}");
    };
    let default = Policy::default();
    let most = default.most_downtime;
    check(default.clone(), &|end| matches!(end, End::Switched { gap, .. } if *gap <= most));
    let policy = Policy { postcopy: Postcopy::Fallback, ..default.clone() };
    check(policy, &|end| matches!(end, End::Postcopy { after } if *after < millis(30_000)));
    let policy = Policy { throttle: false, last: LastResort::GiveUp, ..default.clone() };
    check(policy, &|end| matches!(end, End::GaveUp { why, .. } if why.contains("faster")));
    let policy = Policy { throttle: false, ..default.clone() };
    check(policy, &|end| matches!(end, End::Switched { .. }));
    let policy =
        Policy { time_limit: Some(millis(2000)), last: LastResort::GiveUp, ..default.clone() };
    check(
        policy,
        &|end| matches!(end, End::GaveUp { after, why } if *after < millis(2100) && why.contains("time")),
    );
    let policy = Policy { postcopy: Postcopy::AtOnce, ..default };
    check(policy, &|end| matches!(end, End::Postcopy { after } if *after < millis(5000)));
}

#[test]
fn a_link_that_stands_still_is_given_up() {
    let mut pilot = Pilot::new(Policy::default());
    let mut model = Model::new(256.0, 10.0, 10.0, 100.0);
    for _ in 0..500 {
        model.tick();
    }
    let status = model.status();
    let mut ordered = Vec::new();
    for second in 0..=10 {
        ordered = pilot.step(Duration::from_secs(second), &status);
        assert!(second == 10 || ordered.is_empty(), "{second} {ordered:?}");
    }
    assert!(matches!(&ordered[..], [Order::GiveUp { why }] if why.contains("link is cut")));
    assert!(pilot.step(Duration::from_secs(99), &status).is_empty(), "once");
}

#[test]
fn what_is_expected_is_told() {
    let mut pilot = Pilot::new(Policy::default());
    let mut model = Model::new(1000.0, 100.0, 50.0, 100.0);
    for tick in 0..2000u64 {
        model.tick();
        pilot.step(Duration::from_millis(tick), &model.status());
    }
    let outlook = pilot.outlook();
    let speed = outlook.bandwidth.get() as f64 / MIB;
    assert!((90.0..110.0).contains(&speed), "{outlook:?}");
    let left = outlook.remaining_time.unwrap().as_secs_f64();
    assert!((7.0..20.0).contains(&left), "{outlook:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_guest_is_moved_over_every_link(
        memory in 16.0..8192.0f64,
        hot in 0.0..1.0f64,
        writes in 0.0..5000.0f64,
        link in 20.0..3000.0f64,
        overhead in 0.0..0.05f64,
        throttle: bool,
        every in 1u64..60,
    ) {
        let mut model = Model::new(memory, memory * hot, writes, link);
        model.overhead = overhead;
        let end = model.run(Policy { throttle, ..Policy::default() }, every);
        let switched = matches!(end, End::Switched { .. });
        prop_assert!(switched, "{end:?}");
    }

    #[test]
    fn a_guest_that_can_be_had_within_the_goal_is(
        memory in 64.0..4096.0f64,
        ratio in 0.0..0.4f64,
        link in 200.0..3000.0f64,
    ) {
        let writes = link * ratio;
        let goal = Policy::default().downtime;
        let end = Model::new(memory, memory, writes, link).run(Policy::default(), 5);
        let End::Switched { after, gap } = end else { panic!("{end:?}") };
        prop_assert!(gap <= goal, "{gap:?}");
        let copy = Duration::from_secs_f64(memory / link / (1.0 - ratio) + 1.5);
        prop_assert!(after <= copy, "{after:?} and not {copy:?}");
    }

    #[test]
    fn no_figures_confuse_it(
        figures in prop::collection::vec((0u64..u64::MAX, 0u64..u64::MAX, 0u64..9, 0u64..500), 1..60)
    ) {
        let mut pilot = Pilot::new(Policy { postcopy: Postcopy::Fallback, ..Policy::default() });
        let mut at = Duration::ZERO;
        for (remaining, transferred, passes, later) in figures {
            at += Duration::from_millis(later);
            let ram = Ram {
                remaining: Bytes(remaining),
                transferred: Bytes(transferred),
                passes,
                ..Ram::default()
            };
            let status =
                MigrationStatus { ram: Some(ram), ..MigrationStatus::of(MigrationPhase::Active) };
            for order in pilot.step(at, &status) {
                if let Order::Set(limits) = order {
                    let last = limits.downtime == Duration::from_secs(2000);
                    prop_assert!(last || limits.downtime <= pilot.policy().most_downtime);
                    prop_assert!(limits.throttle.initial <= limits.throttle.most);
                }
            }
            let _ = pilot.outlook();
        }
    }
}

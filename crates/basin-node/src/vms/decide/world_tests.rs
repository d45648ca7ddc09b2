//! Pure. Decisions against a model of the world in which anything may happen at any time.

use basin_model::vm::FailurePolicy;
use proptest::prelude::*;

use super::table_tests::{ELSEWHERE, HERE, a_process, a_vm, at};
use super::*;

/// Whatever may happen.
#[derive(Debug, Clone)]
enum Happening {
    Start,
    Stop,
    ShutDown {
        within: i64,
    },
    Pause,
    Unpause,
    AskReset,
    MoveAway,
    HandOver,
    Delete,
    GuestOff,
    GuestPanic,
    QemuDies,
    /// Killed and started again at once; forgets what it knew.
    DaemonDies,
    ServerReboots,
    TimePasses {
        seconds: i64,
    },
    /// The next start fails, for good or not.
    StartWillFail {
        tries: u32,
    },
    /// The daemon dies after the status of this many steps from now.
    DieMidway {
        steps: u32,
    },
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    use Happening::*;
    let one = prop_oneof![
        3 => Just(Start),
        1 => Just(Stop),
        2 => (0i64..60).prop_map(|within| ShutDown { within }),
        1 => Just(Pause),
        1 => Just(Unpause),
        1 => Just(AskReset),
        1 => Just(HandOver),
        2 => Just(GuestOff),
        2 => Just(GuestPanic),
        2 => Just(QemuDies),
        2 => Just(DaemonDies),
        1 => Just(ServerReboots),
        4 => (0i64..400).prop_map(|seconds| TimePasses { seconds }),
        1 => (1u32..4).prop_map(|tries| StartWillFail { tries }),
        2 => (0u32..4).prop_map(|steps| DieMidway { steps }),
    ];
    let last = prop_oneof![6 => Just(None), 1 => Just(Some(Delete)), 1 => Just(Some(MoveAway))];
    (prop::collection::vec(one, 0..30), last).prop_map(|(mut all, last)| {
        all.extend(last);
        all
    })
}

struct World {
    now: i64,
    vm: Option<Vm>,
    status: Option<VmStatus>,
    machine: Option<Seen>,
    parts: bool,
    /// What the daemon keeps in its head.
    news: News,
    rebooted: bool,
    parts_believed: bool,
    done: bool,
    heeds_button: bool,
    start_fails: Option<u32>,
    dies_in: Option<u32>,
    /// The epoch that the guest ended by itself.
    guest_ended: u64,
}

impl World {
    fn new(policy: FailurePolicy, heeds_button: bool) -> World {
        let mut vm = a_vm(Power::Off { how: PowerOff::Now }, 0);
        vm.spec.policy = policy;
        World {
            now: 0,
            vm: Some(vm),
            status: None,
            machine: None,
            parts: false,
            news: News::default(),
            rebooted: false,
            parts_believed: false,
            done: false,
            heeds_button,
            start_fails: None,
            dies_in: None,
            guest_ended: 0,
        }
    }

    fn happen(&mut self, what: &Happening) {
        let now = self.now;
        let run = |world: &mut World, power| {
            if let Some(vm) = &mut world.vm {
                vm.run.power = power;
            }
        };
        match *what {
            Happening::Start => {
                run(self, Power::Running);
                if let Some(vm) = &mut self.vm {
                    vm.run.epoch += 1;
                }
            }
            Happening::Stop => run(self, Power::Off { how: PowerOff::Now }),
            Happening::ShutDown { within } => {
                run(self, Power::Off { how: PowerOff::Graceful { deadline: at(now + within) } });
            }
            Happening::Pause | Happening::Unpause => {
                let power = match what {
                    Happening::Pause => Power::Paused,
                    _ => Power::Running,
                };
                if let Some(vm) = &mut self.vm
                    && !matches!(vm.run.power, Power::Off { .. })
                {
                    vm.run.power = power;
                }
            }
            Happening::AskReset => {
                if let Some(vm) = &mut self.vm {
                    vm.run.resets += 1;
                }
            }
            Happening::HandOver | Happening::MoveAway => {
                let host = if matches!(what, Happening::MoveAway) { ELSEWHERE } else { HERE };
                if let Some(vm) = &mut self.vm {
                    let generation = vm.placement.unwrap().generation.next();
                    vm.placement = Some(Placement { host, generation });
                }
            }
            Happening::Delete => self.vm = None,
            Happening::GuestOff => self.guest_goes_off(),
            Happening::GuestPanic => {
                if let Some(m) = &mut self.machine
                    && m.state == MachineState::Running
                {
                    m.state = MachineState::Crashed;
                    self.news.crash = Some(FailureKind::GuestPanic);
                }
            }
            Happening::QemuDies => {
                // One whose guest is off is not killed here: that the guest had gone
                // would be lost with it, and no daemon could know.
                if self.machine.as_ref().is_some_and(|m| m.state != MachineState::Shutdown) {
                    self.machine = None;
                    self.news.died = Some("signal 9".into());
                }
            }
            Happening::DaemonDies => self.daemon_dies(),
            Happening::ServerReboots => {
                if self.machine.as_ref().is_some_and(|m| m.state != MachineState::Shutdown) {
                    self.machine = None;
                }
                self.daemon_dies();
                self.rebooted = self.machine.is_none();
            }
            Happening::TimePasses { seconds } => {
                self.now += seconds;
            }
            Happening::StartWillFail { tries } => self.start_fails = Some(tries),
            Happening::DieMidway { steps } => self.dies_in = Some(steps),
        }
    }

    fn guest_goes_off(&mut self) {
        if let Some(m) = &mut self.machine
            && m.state == MachineState::Running
        {
            m.state = MachineState::Shutdown;
            self.guest_ended = self.status.as_ref().unwrap().started_epoch;
            self.news.guest_off = true;
        }
    }

    fn daemon_dies(&mut self) {
        self.news = News::default();
        self.rebooted = false;
        self.parts_believed =
            self.status.as_ref().is_some_and(|s| s.phase != Phase::Stopped) || self.parts;
        if let Some(m) = &mut self.machine {
            m.pressed = None;
            m.reset_to = 0;
        }
    }

    /// Steps until nothing is left to do now.
    fn reconcile(&mut self) {
        for _ in 0..20 {
            if self.done || !self.step() {
                return;
            }
        }
        panic!("does not come to rest: {:?} {:?}", self.vm, self.status);
    }

    fn step(&mut self) -> bool {
        let facts = Facts {
            now: at(self.now),
            host: HERE,
            machine: self.machine.clone(),
            news: &self.news,
            parts: self.parts_believed,
            rebooted: self.rebooted,
        };
        let d = decide(self.vm.as_ref(), self.status.as_ref(), &facts);
        let changed = d.status.is_some() && d.status != self.status;
        if let Some(status) = d.status {
            if status.phase == Phase::Stopped {
                assert!(self.machine.is_none() && !self.parts, "stopped, with something left");
            }
            self.status = Some(status);
        }
        self.news = News::default();
        match &mut self.dies_in {
            Some(0) => {
                self.dies_in = None;
                self.daemon_dies();
                return true;
            }
            Some(n) => *n -= 1,
            None => {}
        }
        self.act(d.action);
        changed || d.action != Action::Rest
    }

    fn act(&mut self, action: Action) {
        let resets = self.vm.as_ref().map_or(0, |vm| vm.run.resets);
        match action {
            Action::Rest => {}
            Action::Launch => self.launch(),
            Action::PressPowerButton => {
                let heeds = self.heeds_button;
                let m = self.machine.as_mut().expect("a machine to press a button of");
                assert_eq!(m.state, MachineState::Running);
                m.pressed = Some(at(self.now));
                if heeds {
                    self.guest_goes_off();
                }
            }
            Action::Pause => self.machine.as_mut().unwrap().state = MachineState::Paused,
            Action::Resume | Action::Reclaim => {
                self.machine.as_mut().unwrap().state = MachineState::Running
            }
            Action::Reset => {
                let m = self.machine.as_mut().unwrap();
                m.reset_to = resets;
                if m.state == MachineState::Crashed {
                    m.state = MachineState::Running;
                }
            }
            Action::Kill => {
                assert!(self.machine.take().is_some());
                self.parts_believed = true;
            }
            Action::Dismantle => {
                assert!(self.machine.is_none());
                (self.parts, self.parts_believed) = (false, false);
            }
            Action::LetGo { forget } => {
                assert!(self.machine.is_none() && !self.parts);
                if forget {
                    self.status = None;
                }
                self.done = true;
            }
        }
    }

    fn launch(&mut self) {
        let vm = self.vm.as_ref().expect("only a VM that exists is launched");
        let status = self.status.as_ref().unwrap();
        assert!(self.machine.is_none(), "launched twice");
        assert!(!self.parts, "launched over what was left");
        assert!(!matches!(vm.run.power, Power::Off { .. }), "launched though it is to be off");
        assert!(vm.run.epoch > self.guest_ended, "started again what its guest had ended");
        assert_eq!((status.phase.clone(), status.started_epoch), (Phase::Starting, vm.run.epoch));
        self.rebooted = false;
        if let Some(tries) = self.start_fails.take() {
            let message = "as foreseen".into();
            self.news.start_failed = Some(StartFailure { message, tries });
            return;
        }
        (self.parts, self.parts_believed) = (true, true);
        self.machine = Some(Seen {
            generation: vm.placement.unwrap().generation,
            state: MachineState::Running,
            process: a_process(),
            pressed: None,
            reset_to: vm.run.resets,
        });
    }

    fn check_deadline(&self) {
        let Some(vm) = &self.vm else { return };
        if let Power::Off { how: PowerOff::Graceful { deadline } } = vm.run.power
            && at(self.now) >= deadline
        {
            assert!(self.machine.is_none(), "still there after its deadline");
        }
    }

    fn check_settled(&self) {
        let here = self.vm.as_ref().filter(|vm| vm.placement.unwrap().host == HERE);
        let Some(vm) = here else {
            assert!(self.done && self.machine.is_none() && !self.parts);
            return;
        };
        let status = self.status.as_ref().unwrap();
        let state = self.machine.as_ref().map(|m| m.state.clone());
        let wanted = vm.run.epoch > status.ended_epoch;
        match (vm.run.power, &status.phase) {
            (Power::Off { .. }, phase) => assert_eq!((phase, state), (&Phase::Stopped, None)),
            (Power::Running, Phase::Running) if wanted => {
                assert_eq!(state, Some(MachineState::Running));
                assert_eq!(status.resets_seen, vm.run.resets);
                assert_eq!(status.failures, 0);
            }
            (Power::Paused, Phase::Paused) if wanted => {
                assert_eq!(state, Some(MachineState::Paused));
            }
            (_, Phase::Crashed) if wanted => {
                assert_eq!(vm.spec.policy.guest_crash, OnFailure::Leave);
                assert_eq!(state, Some(MachineState::Crashed));
            }
            (_, Phase::Stopped | Phase::Failed) if !wanted => assert_eq!(state, None),
            other => panic!("{other:?} {status:?} {state:?}"),
        }
    }
}

fn policies() -> impl Strategy<Value = FailurePolicy> {
    let one = || {
        prop_oneof![
            2 => Just(OnFailure::Restart),
            1 => Just(OnFailure::Stop),
            1 => Just(OnFailure::Leave)
        ]
    };
    (one(), one())
        .prop_map(|(guest_crash, machine_death)| FailurePolicy { guest_crash, machine_death })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn whatever_happens_what_is_wanted_comes_about(
        happenings in happenings(),
        policy in policies(),
        heeds_button: bool,
        eager: bool,
    ) {
        let mut world = World::new(policy, heeds_button);
        for what in &happenings {
            world.happen(what);
            // Several things may happen before the daemon looks.
            if eager || matches!(what, Happening::TimePasses { .. }) {
                world.reconcile();
                world.check_deadline();
            }
        }
        (world.start_fails, world.dies_in) = (None, None);
        for _ in 0..3 {
            world.reconcile();
            world.now += 600;
        }
        world.reconcile();
        world.check_deadline();
        world.check_settled();
    }
}

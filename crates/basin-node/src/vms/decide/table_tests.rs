//! Pure. One row a situation: what is decided in it.

use std::net::Ipv4Addr;

use basin_model::vm::{
    Boot, CpuModel, FailurePolicy, Machine as MachineType, Migration, Nic, Run, VmSpec,
};
use basin_model::{Bytes, Meta, Name, NetworkId, NicId, Vcpus, VmId};

use super::*;

pub(super) const HERE: HostId = HostId::from_uuid(uuid(1));
pub(super) const ELSEWHERE: HostId = HostId::from_uuid(uuid(2));

const fn uuid(n: u128) -> uuid::Uuid {
    uuid::Uuid::from_u128(n)
}

pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).unwrap()
}

pub(super) fn a_vm(power: Power, epoch: u64) -> Vm {
    let name: Name = "web-1".parse().unwrap();
    Vm {
        id: VmId::from_uuid(uuid(3)),
        meta: Meta {
            name,
            description: String::new(),
            labels: Default::default(),
            created_at: at(-1000),
        },
        spec: VmSpec {
            vcpus: Vcpus(1),
            memory: Bytes::mib(64),
            cpu_model: CpuModel::Auto,
            machine: MachineType::Q35,
            boot: Boot::Bios,
            disks: vec![],
            cdroms: vec![],
            nics: vec![Nic {
                id: NicId::from_uuid(uuid(4)),
                network: NetworkId::from_uuid(uuid(5)),
                mac: basin_model::MacAddr::from_random([1, 2, 3]),
                address: Ipv4Addr::new(10, 0, 0, 2),
            }],
            cloud_init: None,
            policy: FailurePolicy::default(),
        },
        run: Run { power, epoch, resets: 0 },
        placement: Some(Placement { host: HERE, generation: Generation(1) }),
        hardware: None,
        migration: None,
    }
}

pub(super) fn a_process() -> QemuProcess {
    QemuProcess { pid: 42, version: "7.2.0".into(), accelerator: "tcg".into(), started_at: at(0) }
}

fn a_status(phase: Phase) -> VmStatus {
    let over = matches!(phase, Phase::Stopped | Phase::Failed);
    VmStatus {
        vm: VmId::from_uuid(uuid(3)),
        host: HERE,
        generation: Generation(1),
        phase,
        since: at(0),
        started_epoch: 1,
        ended_epoch: over.into(),
        resets_seen: 0,
        failures: 0,
        last_failure: None,
        qemu: None,
    }
}

fn seen(state: MachineState) -> Option<Seen> {
    let process = a_process();
    Some(Seen { generation: Generation(1), state, process, pressed: None, reset_to: 0 })
}

/// A situation ten seconds after time zero.
struct Row {
    vm: Option<Vm>,
    status: Option<VmStatus>,
    machine: Option<Seen>,
    news: News,
    parts: bool,
    rebooted: bool,
}

fn row(power: Power, epoch: u64, phase: Phase, machine: Option<Seen>) -> Row {
    let parts = machine.is_some();
    Row {
        vm: Some(a_vm(power, epoch)),
        status: Some(a_status(phase)),
        machine,
        news: News::default(),
        parts,
        rebooted: false,
    }
}

impl Row {
    fn decide(&self) -> Decision {
        let facts = Facts {
            now: at(10),
            host: HERE,
            machine: self.machine.clone(),
            news: &self.news,
            parts: self.parts,
            rebooted: self.rebooted,
        };
        decide(self.vm.as_ref(), self.status.as_ref(), &facts)
    }

    fn news(mut self, news: News) -> Row {
        self.news = news;
        self
    }

    fn policy(mut self, guest_crash: OnFailure, machine_death: OnFailure) -> Row {
        self.vm.as_mut().unwrap().spec.policy = FailurePolicy { guest_crash, machine_death };
        self
    }

    #[track_caller]
    fn gives(self, action: Action, phase: Phase, ended: u64) -> Decision {
        let d = self.decide();
        let s = d.status.clone().expect("a status");
        assert_eq!((d.action, s.phase.clone(), s.ended_epoch), (action, phase, ended), "{d:?}");
        d
    }
}

const RUNNING: Power = Power::Running;
const OFF: Power = Power::Off { how: PowerOff::Now };

fn graceful(seconds: i64) -> Power {
    Power::Off { how: PowerOff::Graceful { deadline: at(seconds) } }
}

fn backing_off(seconds: i64) -> Phase {
    Phase::BackingOff { until: at(seconds) }
}

fn down(seconds: i64) -> Phase {
    Phase::ShuttingDown { deadline: at(seconds) }
}

#[test]
fn starts_and_stops() {
    row(RUNNING, 1, Phase::Starting, None).gives(Action::Launch, Phase::Starting, 0);
    row(RUNNING, 2, Phase::Stopped, None).gives(Action::Launch, Phase::Starting, 1);
    row(RUNNING, 1, Phase::Stopped, None).gives(Action::Rest, Phase::Stopped, 1);
    let running = || seen(MachineState::Running);
    row(RUNNING, 1, Phase::Starting, running()).gives(Action::Rest, Phase::Running, 0);
    row(RUNNING, 1, Phase::Running, running()).gives(Action::Rest, Phase::Running, 0);
    row(OFF, 1, Phase::Running, running()).gives(Action::Kill, Phase::Running, 1);
    row(OFF, 1, Phase::Running, None).gives(Action::Rest, Phase::Stopped, 1);
    row(OFF, 4, Phase::Failed, None).gives(Action::Rest, Phase::Stopped, 4);
    row(OFF, 1, backing_off(99), None).gives(Action::Rest, Phase::Stopped, 1);
}

#[test]
fn never_says_stopped_while_something_is_left() {
    let mut left = row(OFF, 1, Phase::Running, None);
    left.parts = true;
    left.gives(Action::Dismantle, Phase::Running, 1);
    let mut again = row(RUNNING, 2, Phase::Running, None);
    again.parts = true;
    again.gives(Action::Dismantle, Phase::Running, 0);
}

#[test]
fn shuts_down_gracefully_and_then_by_force() {
    let running = || seen(MachineState::Running);
    let pressed = |second| {
        let mut seen = seen(MachineState::Running);
        seen.as_mut().unwrap().pressed = Some(at(second));
        seen
    };
    let press = Action::PressPowerButton;
    row(graceful(60), 1, Phase::Running, running()).gives(press, down(60), 0);
    let d = row(graceful(60), 1, down(60), pressed(5)).gives(Action::Rest, down(60), 0);
    assert_eq!(d.wake, Some(at(15)));
    row(graceful(60), 1, down(60), pressed(0)).gives(press, down(60), 0);
    row(graceful(10), 1, down(10), pressed(5)).gives(Action::Kill, down(10), 1);
    row(graceful(60), 1, down(60), seen(MachineState::Shutdown)).gives(Action::Kill, down(60), 1);
    row(graceful(60), 1, Phase::Paused, seen(MachineState::Paused)).gives(
        Action::Resume,
        down(60),
        0,
    );
    row(graceful(60), 1, Phase::Crashed, seen(MachineState::Crashed)).gives(
        Action::Kill,
        Phase::Crashed,
        1,
    );
    // Started again meanwhile: goes down first, by the same deadline.
    row(RUNNING, 2, down(60), pressed(5)).gives(Action::Rest, down(60), 0);
    row(RUNNING, 2, down(10), pressed(5)).gives(Action::Kill, down(10), 1);
    // Called off.
    row(RUNNING, 1, down(60), pressed(5)).gives(Action::Rest, Phase::Running, 0);
}

#[test]
fn pauses_resumes_and_resets() {
    let running = || seen(MachineState::Running);
    let paused = || seen(MachineState::Paused);
    row(Power::Paused, 1, Phase::Running, running()).gives(Action::Pause, Phase::Running, 0);
    row(Power::Paused, 1, Phase::Running, paused()).gives(Action::Rest, Phase::Paused, 0);
    row(RUNNING, 1, Phase::Paused, paused()).gives(Action::Resume, Phase::Paused, 0);
    let mut reset = row(RUNNING, 1, Phase::Running, running());
    reset.vm.as_mut().unwrap().run.resets = 3;
    let d = reset.decide();
    assert_eq!((d.action, d.status.unwrap().resets_seen), (Action::Reset, 0));
    reset.machine.as_mut().unwrap().reset_to = 3;
    let d = reset.decide();
    assert_eq!((d.action, d.status.unwrap().resets_seen), (Action::Rest, 3));
    // A start covers the resets asked for before it.
    let mut start = row(RUNNING, 2, Phase::Stopped, None);
    start.vm.as_mut().unwrap().run.resets = 3;
    assert_eq!(start.gives(Action::Launch, Phase::Starting, 1).status.unwrap().resets_seen, 3);
}

#[test]
fn a_guest_that_turns_itself_off_stays_off() {
    let off = seen(MachineState::Shutdown);
    row(RUNNING, 1, Phase::Running, off).gives(Action::Kill, Phase::Running, 1);
    let news = News { guest_off: true, died: Some("exit 0".into()), ..News::default() };
    row(RUNNING, 1, Phase::Running, None).news(news.clone()).gives(Action::Rest, Phase::Stopped, 1);
    row(RUNNING, 2, Phase::Running, None).news(news).gives(Action::Launch, Phase::Starting, 1);
}

#[test]
fn a_guest_crash_follows_its_policy() {
    use OnFailure::{Leave, Restart, Stop};
    let crash = |policy| {
        let news = News { crash: Some(FailureKind::Watchdog), ..News::default() };
        row(RUNNING, 1, Phase::Running, seen(MachineState::Crashed))
            .policy(policy, Restart)
            .news(news)
    };
    let d = crash(Restart).gives(Action::Kill, backing_off(11), 0);
    let status = d.status.unwrap();
    assert_eq!((status.failures, status.last_failure.unwrap().kind), (1, FailureKind::Watchdog));
    crash(Stop).gives(Action::Kill, Phase::Running, 1);
    crash(Leave).gives(Action::Rest, Phase::Crashed, 0);
    let left = |epoch| row(RUNNING, epoch, Phase::Crashed, seen(MachineState::Crashed));
    left(1).gives(Action::Rest, Phase::Crashed, 0);
    left(2).gives(Action::Kill, Phase::Crashed, 1);
    let mut reset = left(1);
    reset.vm.as_mut().unwrap().run.resets = 1;
    reset.gives(Action::Reset, Phase::Crashed, 0);
    row(OFF, 1, Phase::Crashed, seen(MachineState::Crashed)).gives(Action::Kill, Phase::Crashed, 1);
}

#[test]
fn the_death_of_qemu_follows_its_policy() {
    use OnFailure::{Leave, Restart, Stop};
    let death = |policy| row(RUNNING, 1, Phase::Running, None).policy(Restart, policy);
    death(Restart).gives(Action::Rest, backing_off(11), 0);
    death(Stop).gives(Action::Rest, Phase::Running, 1);
    death(Leave).gives(Action::Rest, Phase::Failed, 1);
    // Right after its start, before the status said so.
    let news = News { died: Some("signal 9".into()), ..News::default() };
    let d = row(RUNNING, 1, Phase::Starting, None).news(news);
    let status = d.gives(Action::Rest, backing_off(11), 0).status.unwrap();
    assert!(status.last_failure.unwrap().message.contains("signal 9"));
}

#[test]
fn backs_off_longer_each_time_until_it_runs_well() {
    let mut dies = row(RUNNING, 1, Phase::Running, None);
    dies.status.as_mut().unwrap().failures = 3;
    let d = dies.gives(Action::Rest, backing_off(18), 0);
    assert_eq!(d.status.unwrap().failures, 4);
    let mut well = row(RUNNING, 1, Phase::Running, None);
    well.status.as_mut().unwrap().failures = 3;
    well.status.as_mut().unwrap().since = at(-290);
    well.gives(Action::Rest, backing_off(11), 0);
    let mut runs = row(RUNNING, 1, Phase::Running, seen(MachineState::Running));
    runs.status.as_mut().unwrap().failures = 3;
    assert_eq!(runs.decide().wake, Some(at(300)));
    runs.status.as_mut().unwrap().since = at(-290);
    let d = runs.decide();
    assert_eq!((d.wake, d.status.unwrap().failures), (None, 0));
    let d = row(RUNNING, 1, backing_off(12), None).gives(Action::Rest, backing_off(12), 0);
    assert_eq!(d.wake, Some(at(12)));
    row(RUNNING, 1, backing_off(10), None).gives(Action::Launch, Phase::Starting, 0);
    // Somebody asks: now.
    row(RUNNING, 2, backing_off(99), None).gives(Action::Launch, Phase::Starting, 0);
}

#[test]
fn a_start_that_fails_is_tried_again_only_where_that_can_help() {
    let fails = |tries| {
        let failure = StartFailure { message: "no such bridge".into(), tries };
        let news = News { start_failed: Some(failure), ..News::default() };
        row(RUNNING, 1, Phase::Starting, None).news(news)
    };
    fails(1).gives(Action::Rest, Phase::Failed, 1);
    fails(3).gives(Action::Rest, backing_off(11), 0);
    let mut third = fails(3);
    let status = third.status.as_mut().unwrap();
    status.failures = 2;
    let before = FailureKind::StartFailed;
    status.last_failure = Some(Failure { at: at(0), kind: before, message: String::new() });
    third.gives(Action::Rest, Phase::Failed, 1);
}

#[test]
fn a_reboot_of_the_server_is_no_failure() {
    for phase in [Phase::Running, Phase::Paused, Phase::Crashed, backing_off(99)] {
        let mut rebooted = row(RUNNING, 1, phase, None);
        rebooted.rebooted = true;
        let d = rebooted.gives(Action::Launch, Phase::Starting, 0);
        assert_eq!(d.status.unwrap().failures, 0);
    }
    let mut off = row(RUNNING, 1, Phase::Stopped, None);
    off.rebooted = true;
    off.gives(Action::Rest, Phase::Stopped, 1);
}

#[test]
fn lets_go_of_what_is_not_its_own() {
    let lost = |vm: Option<Vm>| {
        let mut row = row(RUNNING, 1, Phase::Running, seen(MachineState::Running));
        row.vm = vm;
        let kill = row.decide();
        row.machine = None;
        let dismantle = row.decide();
        row.parts = false;
        let last = row.decide();
        let none = (None, None);
        assert_eq!((&kill.status, &dismantle.status), (&none.0, &none.1));
        assert_eq!((kill.action, dismantle.action), (Action::Kill, Action::Dismantle));
        last
    };
    assert_eq!(lost(None).action, Action::LetGo { forget: true });
    let mut moved = a_vm(RUNNING, 1);
    moved.placement = Some(Placement { host: ELSEWHERE, generation: Generation(2) });
    let last = lost(Some(moved));
    assert_eq!(last.action, Action::LetGo { forget: false });
    let status = last.status.unwrap();
    assert_eq!((status.phase, status.generation), (Phase::Stopped, Generation(1)));
}

#[test]
fn an_older_hand_over_is_ended_and_the_newer_one_begins_unburdened() {
    let mut again = row(RUNNING, 1, Phase::Running, seen(MachineState::Running));
    again.vm.as_mut().unwrap().placement =
        Some(Placement { host: HERE, generation: Generation(2) });
    let d = again.decide();
    assert_eq!((d.action, d.status.unwrap().generation), (Action::Kill, Generation(2)));
    // A status of a newer hand-over means that the record seen here is stale.
    let mut stale = row(RUNNING, 1, Phase::Running, seen(MachineState::Running));
    stale.status.as_mut().unwrap().generation = Generation(2);
    let d = stale.decide();
    assert_eq!((d.action, d.status), (Action::Kill, None));
}

fn moving(phase: Phase, machine: Option<Seen>) -> Row {
    let mut row = row(RUNNING, 1, phase, machine);
    row.vm.as_mut().unwrap().migration = Some(Migration {
        task: basin_model::TaskId::from_uuid(uuid(9)),
        to: ELSEWHERE,
        generation: Generation(2),
        disks: Default::default(),
    });
    row
}

#[test]
fn a_guest_that_moves_is_left_to_its_migration() {
    let check = |row: Row, action: Action| {
        let d = row.decide();
        assert_eq!(d.action, action, "{}", d.reason);
    };
    for state in [MachineState::Running, MachineState::Switching, MachineState::Migrated] {
        check(moving(Phase::Running, seen(state)), Action::Rest);
    }
    // It may run over there: it is not started here, whatever the policy says.
    check(moving(Phase::Running, None), Action::Rest);
    // Its guest turned itself off before it could go.
    check(moving(Phase::Running, seen(MachineState::Shutdown)), Action::Kill);
    // The migration is over, and it stayed.
    let stays = |state| row(RUNNING, 1, Phase::Running, seen(state));
    check(stays(MachineState::Migrated), Action::Reclaim);
    check(stays(MachineState::Switching), Action::Reclaim);
    let mut off = stays(MachineState::Migrated);
    off.vm.as_mut().unwrap().run.power = Power::Off { how: PowerOff::Now };
    check(off, Action::Kill);
}

#[test]
fn a_guest_that_has_gone_over_is_let_go_once_all_of_it_has() {
    let gone = |state| {
        let mut row = row(RUNNING, 1, Phase::Running, seen(state));
        row.vm.as_mut().unwrap().placement =
            Some(Placement { host: ELSEWHERE, generation: Generation(2) });
        row.decide()
    };
    let fetching = gone(MachineState::Switching);
    assert_eq!((fetching.action, fetching.status), (Action::Rest, None));
    assert_eq!(gone(MachineState::Migrated).action, Action::Kill);
    assert_eq!(gone(MachineState::Running).action, Action::Kill);
}

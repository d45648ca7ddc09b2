//! What becomes of VMs that fail by themselves, and of servers that lose their power.

use basin_api::client::VmAction;
use basin_api::vm::{FailurePolicy, Machine, OnFailure, State};
use basin_e2e::images::{MIB, add_kernel_words, blank};
use basin_e2e::{Guest, Server, process, until};

fn guest<'s>(server: &'s Server, name: &str, machine: Machine, policy: FailurePolicy) -> Guest<'s> {
    let mut vm = server.micro(name, machine);
    vm.policy = policy;
    add_kernel_words(&mut vm, "micro.ip=off");
    let guest = server.create(&vm);
    guest.start();
    guest
}

fn on_crash(guest_crash: OnFailure) -> FailurePolicy {
    FailurePolicy { guest_crash, ..FailurePolicy::default() }
}

fn on_death(machine_death: OnFailure) -> FailurePolicy {
    FailurePolicy { machine_death, ..FailurePolicy::default() }
}

fn last_failure(guest: &Guest<'_>) -> String {
    guest.vm().status.last_failure.expect("a failure").kind
}

#[test]
fn a_guest_that_panics() {
    let server = Server::start();
    for machine in [Machine::Q35, Machine::Microvm] {
        let again = guest(&server, "again", machine, on_crash(OnFailure::Restart));
        let stop = guest(&server, "stop", machine, on_crash(OnFailure::Stop));
        let leave = guest(&server, "leave", machine, on_crash(OnFailure::Leave));
        let first = again.qemu_pid();
        let left = leave.qemu_pid();
        for guest in [&again, &stop, &leave] {
            guest.shell().send("guest-tool after do=panic");
        }
        again.wait_boot(2);
        assert_ne!(again.qemu_pid(), first);
        assert_eq!((again.vm().status.failures, last_failure(&again)), (1, "guest_panic".into()));
        stop.wait_state(State::Stopped);
        assert_eq!(last_failure(&stop), "guest_panic");
        leave.wait_state(State::Crashed);
        assert_eq!((leave.qemu_pid(), last_failure(&leave)), (left, "guest_panic".into()));
        leave.act(VmAction::Reset);
        leave.wait_boot(2);
        assert_eq!(leave.state(), State::Running);
        for guest in [again, stop, leave] {
            guest.delete(true);
        }
    }
}

#[test]
fn a_guest_that_hangs() {
    let server = Server::start();
    let guest = guest(&server, "hang", Machine::Q35, FailurePolicy::default());
    guest.shell().send("guest-tool watchdog seconds=2 feed=1");
    guest.wait_boot(2);
    assert_eq!(last_failure(&guest), "watchdog");
}

#[test]
fn a_qemu_that_is_killed() {
    let server = Server::start();
    let again = guest(&server, "again", Machine::Microvm, FailurePolicy::default());
    let stop = guest(&server, "stop", Machine::Microvm, on_death(OnFailure::Stop));
    let leave = guest(&server, "leave", Machine::Microvm, on_death(OnFailure::Leave));
    for failures in 1..=2 {
        let old = again.kill_qemu();
        // Paused between its tries, for longer each time.
        until("it backs off or is back", || {
            again.state() != State::Running || again.processes() != [old]
        });
        again.wait_new_qemu(old);
        again.wait_state(State::Running);
        assert_eq!(again.vm().status.failures, failures);
    }
    again.wait_boot(1);
    stop.kill_qemu();
    stop.wait_state(State::Stopped);
    leave.kill_qemu();
    leave.wait_state(State::Failed);
    for guest in [&again, &stop, &leave] {
        assert_eq!(last_failure(guest), "machine_died");
    }
    // Somebody asks again.
    leave.start();
    assert_eq!(leave.state(), State::Running);
}

#[test]
fn after_a_power_failure_what_should_run_runs() {
    let server = Server::start();
    let mut vm = server.micro("run", Machine::Q35);
    vm.disks = vec![blank(16 * MIB)];
    let run = server.create(&vm);
    let hold = server.create(&server.micro("hold", Machine::Microvm));
    let off = server.create(&server.micro("off", Machine::Microvm));
    run.start();
    hold.start();
    off.start();
    run.online().run("guest-tool disk-write dev=/dev/vda blocks=64 count=100");
    hold.shell();
    hold.act(VmAction::Pause);
    off.power_off();
    let (address, old) = (run.address(), run.qemu_pid());

    server.lose_power();
    assert!(!process::alive(old));
    server.boot();
    run.wait_boot(2);
    assert_eq!((run.state(), run.address()), (State::Running, address.clone()));
    assert_eq!(run.vm().status.failures, 0, "a power failure is not the VM's");
    let mut shell = run.console();
    shell.run("guest-tool disk-check dev=/dev/vda blocks=64 acked=100");
    run.wait_log("micro: address", 2);
    server.sh(&format!("ping -c 1 -W 20 {address}"));
    hold.wait_state(State::Paused);
    assert_eq!((off.state(), off.processes()), (State::Stopped, vec![]));
}

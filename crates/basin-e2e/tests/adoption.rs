//! Machines live on while their daemon is dead, stopped or replaced, and are found again.

use basin_api::client::VmAction;
use basin_api::vm::{Machine, State};
use basin_e2e::images::{MIB, blank};
use basin_e2e::{BOOT, Guest, Server, eventually, process, until};

/// What the guest's console said, read without the daemon.
fn says(guest: &Guest<'_>, id: &str, text: &str) {
    let log = guest.server.place.state_dir().join("vms").join(id).join("console.log");
    eventually(&format!("{} says {text}", guest.name), BOOT, || {
        std::fs::read_to_string(&log).ok()?.contains(text).then_some(())
    });
}

#[test]
fn machines_are_found_again() {
    let server = Server::start();
    let mut running = server.micro("run", Machine::Q35);
    running.disks = vec![blank(16 * MIB)];
    let running = server.create(&running);
    let paused = server.create(&server.micro("hold", Machine::Microvm));
    running.start();
    paused.start();
    running.shell().run("echo before >/tmp/mark");
    paused.shell();
    paused.act(VmAction::Pause);
    let before = [running.qemu_pid(), paused.qemu_pid()];
    let blockd = server.blockd_pid();
    let started = running.vm().status.qemu.expect("a process").started_at;

    server.kill();
    server.boot();
    running.wait_state(State::Running);
    paused.wait_state(State::Paused);
    assert_eq!([running.qemu_pid(), paused.qemu_pid()], before);
    assert_eq!(server.blockd_pid(), blockd);
    let qemu = running.vm().status.qemu.expect("a process");
    assert_eq!((qemu.pid, qemu.started_at), (before[0], started));
    assert_eq!(running.console().run("cat /tmp/mark"), "before");

    // An upgrade: another binary, which finds what the old one left.
    let newer = server.place.dir.join("basin-newer");
    std::fs::copy(std::env::var_os("BASIN_BIN").unwrap(), &newer).unwrap();
    server.set_up(|setup| setup.binary(newer.clone()));
    server.restart();
    assert_eq!(std::fs::read_link(format!("/proc/{}/exe", server.pid())).unwrap(), newer);
    assert_eq!([running.qemu_pid(), paused.qemu_pid()], before);
    let mut shell = running.console();
    assert_eq!(shell.run("cat /tmp/mark"), "before");
    shell.run("dd if=/dev/zero of=/dev/vda bs=4096 count=16 conv=fsync");

    // What was adopted obeys as before.
    paused.act(VmAction::Resume);
    paused.shut_down(120);
    running.delete(true);
    assert!(before.iter().all(|&pid| !process::alive(pid)));
}

#[test]
fn what_happened_while_nobody_looked_is_seen() {
    let server = Server::start();
    let off = server.create(&server.micro("off", Machine::Q35));
    let killed = server.create(&server.micro("killed", Machine::Microvm));
    off.start();
    killed.start();
    let (off_id, qemu) = (off.vm().meta.id, killed.qemu_pid());
    off.shell().send("sleep 5; echo 'going 'down; poweroff -f");
    // What is typed passes through the daemon: the guest has to have it all before that dies.
    says(&off, &off_id, "poweroff -f");
    killed.shell();
    server.kill();
    process::kill_hard(qemu);
    says(&off, &off_id, "going down");
    server.boot();

    off.wait_state(State::Stopped);
    assert_eq!(off.vm().status.last_failure, None);
    until("nothing runs for it", || off.processes().is_empty());
    let again = killed.wait_new_qemu(qemu);
    killed.wait_state(State::Running);
    let status = killed.vm().status;
    assert_eq!(status.last_failure.expect("a failure").kind, "machine_died");
    killed.wait_boot(2);
    assert_eq!(killed.qemu_pid(), again);

    // And an order that was given before the daemon died is carried out after.
    let client = server.client();
    server.freeze();
    let order =
        server.runtime().spawn(async move { client.vm_action("killed", VmAction::PowerOff).await });
    server.kill();
    server.boot();
    // It either reached the store or did not; what is wanted and what is agree in the end.
    let accepted = server.call(order).expect("the request's task").is_ok();
    let wanted = if accepted { State::Stopped } else { State::Running };
    killed.wait_state(wanted);
}

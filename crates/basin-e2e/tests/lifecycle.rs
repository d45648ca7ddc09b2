//! The life of a VM, as its users see it.

use basin_api::client::VmAction;
use basin_api::vm::{Machine, State, Vm};
use basin_e2e::images::{MIB, add_kernel_words, blank};
use basin_e2e::{Guest, Server, until};

#[test]
fn a_life_on_q35() {
    a_life(Machine::Q35);
}

#[test]
fn a_life_on_microvm() {
    a_life(Machine::Microvm);
}

/// From creation by the command line to nothing at all.
fn a_life(machine: Machine) {
    let server = Server::start();
    let mut vm = server.micro("web", machine);
    vm.disks = vec![blank(64 * MIB)];
    let file = server.place.dir.join("web.json");
    std::fs::write(&file, serde_json::to_vec(&vm).unwrap()).unwrap();
    let before = Remains::of(&server);
    server.cli(&["vm", "create", "--file", &file.display().to_string()]).ok();
    server.cli(&["vm", "start", "web"]).ok();

    let guest = server.guest("web");
    assert_eq!(guest.state(), State::Running);
    let mut shell = guest.online();
    let address = guest.address();
    assert!(shell.run("ip -4 addr show eth0").contains(&format!("inet {address}/")));
    server.sh(&format!("ping -c 1 -W 20 {address}"));
    let network = server.ok(server.client().get::<basin_api::network::Network>("default"));
    let (gateway, domain) = (network.gateway, network.domain);
    let answer = server.sh(&format!("busybox nslookup web.{domain} {gateway}"));
    assert!(answer.contains(&address), "{answer}");
    assert!(shell.run(&format!("nslookup web.{domain}")).contains(&address));

    refuses_deletion(&guest);
    guest.shut_down(120);
    assert_eq!(guest.state(), State::Stopped);
    assert!(guest.log().contains("power-button: pressed"), "the guest was asked");
    assert_eq!(guest.processes(), [0; 0]);

    descriptive_changes(&server);
    let guest = server.guest("shop");
    guest.start();
    guest.delete(true);
    until("nothing is left", || Remains::of(&server) == before);
}

fn refuses_deletion(guest: &Guest<'_>) {
    let refused = guest.server.cli(&["vm", "delete", "web"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("web") && refused.stderr.contains("force"), "{refused:?}");
    assert_eq!(guest.state(), State::Running);
}

fn descriptive_changes(server: &Server) {
    server.cli(&["vm", "rename", "web", "shop"]).ok();
    server.cli(&["vm", "describe", "shop", "sells things"]).ok();
    server.cli(&["vm", "label", "shop", "tier=gold", "old=1"]).ok();
    server.cli(&["vm", "label", "shop", "old-"]).ok();
    let vm: Vm =
        serde_json::from_str(&server.cli(&["vm", "show", "shop", "-o", "json"]).ok()).unwrap();
    assert_eq!(vm.meta.description, "sells things");
    let labels: Vec<_> = vm.meta.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(labels, ["tier=gold"]);
    assert!(server.cli(&["vm", "list"]).ok().contains("shop"));
    assert_eq!(server.refused(server.client().get::<Vm>("web")).code, "not-found");
}

/// What a VM must not leave behind.
#[derive(Debug, PartialEq)]
struct Remains {
    processes: Vec<String>,
    files: Vec<String>,
    links: String,
    cgroups: Vec<String>,
}

impl Remains {
    fn of(server: &Server) -> Remains {
        let place = &server.place;
        let processes = place.processes().into_iter();
        let mut processes: Vec<String> = processes
            .filter_map(|p| basin_e2e::process::command_line(p).into_iter().next())
            .collect();
        processes.sort();
        let kept = [
            "s/vms",
            "s/datastores/default/volumes",
            "s/datastores/default/incoming",
            "r/vms",
            "r/blockd",
        ];
        let files = kept.map(|dir| place.dir.join(dir)).iter().flat_map(|d| names(d)).collect();
        let links = server.sh("ip -o link show type tun | cut -d: -f2");
        let cgroups =
            place.cgroups().into_iter().flat_map(|c| names(&c)).filter(|n| n.contains("vm-"));
        Remains { processes, files, links, cgroups: cgroups.collect() }
    }
}

fn names(dir: &std::path::Path) -> Vec<String> {
    let all = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = all
        .map(|e| e.path().display().to_string())
        // Made once, for the first VM, and empty without one.
        .filter(|name| !name.ends_with("/blockd/exports"))
        .collect();
    names.sort();
    names
}

#[test]
fn a_paused_guest_does_nothing_and_goes_on() {
    let server = Server::start();
    let mut vm = server.micro("t", Machine::Microvm);
    add_kernel_words(&mut vm, "micro.run=ticks,ms=100");
    let guest = server.create(&vm);
    guest.start();
    guest.shell();
    guest.wait_log("tick ", 5);

    server.cli(&["vm", "pause", "t"]).ok();
    assert_eq!(guest.state(), State::Paused);
    let ticks = guest.log().matches("tick ").count();
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(guest.log().matches("tick ").count(), ticks);
    let again = server.refused(server.client().vm_action("t", VmAction::Pause));
    assert_eq!(again.code, "wrong-state");

    server.cli(&["vm", "resume", "t"]).ok();
    guest.wait_log("tick ", ticks + 5);
    // A pause is not a boot.
    assert_eq!(guest.log().matches("micro: up").count(), 1);

    // Paused guests cannot see the button: they are resumed for it.
    guest.act(VmAction::Pause);
    guest.shut_down(120);
    assert!(guest.log().contains("power-button: pressed"));
}

#[test]
fn resets_reboots_and_ends() {
    let server = Server::start();
    let guest = server.create(&server.micro("r", Machine::Q35));
    guest.start();
    guest.shell();
    let qemu = guest.qemu_pid();

    server.cli(&["vm", "reset", "r"]).ok();
    guest.wait_boot(2);
    assert_eq!(guest.qemu_pid(), qemu, "a reset keeps the machine");

    guest.console().send("reboot -f");
    guest.wait_boot(3);
    until("the reboot is seen", || server.log().contains("the guest rebooted"));
    assert_eq!((guest.qemu_pid(), guest.state()), (qemu, State::Running));

    // A guest that turns itself off stays off.
    guest.console().send("poweroff -f");
    guest.wait_state(State::Stopped);
    server.restart();
    assert_eq!((guest.state(), guest.processes()), (State::Stopped, vec![]));

    guest.start();
    guest.power_off();
    assert_eq!((guest.state(), guest.processes()), (State::Stopped, vec![]));
}

#[test]
fn a_guest_that_ignores_the_button_is_turned_off() {
    let server = Server::start();
    let mut vm = server.micro("deaf", Machine::Microvm);
    add_kernel_words(&mut vm, "micro.button=ignore");
    let guest = server.create(&vm);
    guest.start();
    guest.shell();
    server.cli(&["vm", "shutdown", "deaf", "--timeout", "3s"]).ok();
    assert_eq!((guest.state(), guest.processes()), (State::Stopped, vec![]));
}

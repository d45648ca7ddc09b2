//! A single server becomes the first of a cluster: nothing that it has is lost, nothing
//! that runs is touched, and a death of the daemon at any moment leaves it the one or
//! the other.

use basin_api::cluster::Mode;
use basin_api::image::Image;
use basin_api::network::Network;
use basin_api::token::Token;
use basin_api::vm::{Machine, State, Vm};
use basin_api::volume::Volume;
use basin_e2e::images::{MIB, blank, volume};
use basin_e2e::{Cluster, Server, process, until};

const FAULT: &str = "BASIN_FAULT";

/// By name, what the server has of everything.
fn things(server: &Server) -> Vec<String> {
    let mut all = Vec::new();
    let client = server.client();
    all.extend(server.ok(client.list::<Vm>()).items.into_iter().map(|v| v.meta.id));
    all.extend(server.ok(client.list::<Volume>()).items.into_iter().map(|v| v.meta.id));
    all.extend(server.ok(client.list::<Image>()).items.into_iter().map(|v| v.meta.id));
    all.extend(server.ok(client.list::<Network>()).items.into_iter().map(|v| v.meta.id));
    all.extend(server.ok(client.list::<Token>()).items.into_iter().map(|t| t.meta.id));
    all.sort();
    all
}

fn zombies_of(parent: u32) -> Vec<u32> {
    let children = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = children.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let is_one = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let mut words = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
        words.next() == Some("Z") && words.next() == Some(&parent.to_string())
    };
    pids.filter(is_one).collect()
}

#[test]
fn a_machine_runs_on_while_its_server_becomes_the_first_of_a_cluster() {
    let cluster = Cluster::start(1);
    let server = &cluster.servers[0];
    let mut run = server.micro("run", Machine::Q35);
    run.disks = vec![blank(16 * MIB)];
    let guest = server.create(&run);
    guest.start();
    guest.shell().run("echo before >/tmp/mark");
    server.done(server.client().create::<Volume>(&volume("more", None)));
    server.cli(&["network", "create", "blue", "--subnet", "10.50.0.0/24"]).ok();
    let token = server.cli(&["token", "create", "ci"]).ok();
    let (before, qemu, blockd) = (things(server), guest.qemu_pid(), server.blockd_pid());
    let daemon = server.pid();

    cluster.form();
    assert_eq!(server.mode(), Some(Mode::Cluster));
    assert_eq!(things(server), before);
    guest.wait_state(State::Running);
    assert_eq!((guest.qemu_pid(), server.blockd_pid(), server.pid()), (qemu, blockd, daemon));
    let mut shell = guest.console();
    assert_eq!(shell.run("cat /tmp/mark"), "before");
    shell.run("dd if=/dev/zero of=/dev/vda bs=4096 count=16 conv=fsync");
    // The token lets in as before, over the cluster's own certificate.
    let ca = server.place.state_dir().join("cluster/tls/ca.pem");
    let url = cluster.url(0);
    let ca = ca.display().to_string();
    let ask = ["--url", &url, "--token", token.trim(), "--ca", &ca, "vm", "list"];
    assert!(server.cli(&ask).ok().contains("run"));

    // What was adopted obeys, and leaves no trace when it ends.
    guest.power_off();
    until("QEMU is gone", || !process::alive(qemu));
    until("nothing of it is left", || zombies_of(server.pid()).is_empty());
    guest.start();
    guest.shell();
    server.restart();
    assert_eq!(server.mode(), Some(Mode::Cluster));
    guest.wait_state(State::Running);
    guest.delete(true);
}

#[test]
fn a_daemon_that_dies_while_it_forms_a_cluster_is_single_or_has_all_in_it() {
    let places = [
        ("init/intent/before", Some(Mode::Single)),
        ("init/intent/after", None),
        ("init/copy/before", None),
        ("init/copy/after", None),
        ("init/settle/after", None),
        ("cluster/enter/before", None),
        ("cluster/enter/after", Some(Mode::Cluster)),
    ];
    std::thread::scope(|scope| {
        for halves in [&places[..4], &places[4..]] {
            scope.spawn(move || halves.iter().for_each(|(place, expect)| dies_at(place, expect)));
        }
    });
}

fn dies_at(place: &str, expect: &Option<Mode>) {
    let set_up = |_, setup: basin_e2e::Setup| setup.arg("--engine=fake").env(FAULT, place);
    let cluster = Cluster::start_with(1, set_up);
    let server = &cluster.servers[0];
    server.done(server.client().create::<Volume>(&volume("kept", None)));
    server.cli(&["token", "create", "ci"]).ok();
    let before = things(server);

    let address = cluster.address(0).to_string();
    // Nobody waits for an answer: there may be none.
    let mut init = server.basin(&["init", "--advertise", &address]);
    let mut init = init.stderr(std::process::Stdio::null()).spawn().expect("run basin");
    server.wait_dead();
    let _ = init.kill();
    init.wait().expect("wait for basin");
    server.set_up(|setup| setup.without_env(FAULT));
    server.boot();
    // Whatever was begun is finished or undone by now.
    let found = server.mode();
    let expect = Some(expect.unwrap_or(Mode::Cluster));
    assert_eq!(found, expect, "{place}");
    assert_eq!(things(server), before, "{place}");
    // Both can be worked with.
    server.done(server.client().create::<Volume>(&volume("later", None)));
    if found == Some(Mode::Single) {
        cluster.form();
    }
    assert_eq!(server.mode(), Some(Mode::Cluster), "{place}");
    assert_eq!(things(server).len(), before.len() + 1, "{place}");
    server.restart();
    assert_eq!(things(server).len(), before.len() + 1, "{place}");
    let state = server.place.state_dir();
    for gone in ["cluster.next", "cluster/authority.json", "cluster/intent.json", "store.sqlite"] {
        assert!(!state.join(gone).exists(), "{place}: {gone} is left");
    }
}

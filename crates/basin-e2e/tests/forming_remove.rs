//! Servers leave: those that are empty give up what they keep first and then begin
//! anew, alone; those that are dead are given up, and cannot come back as what they were.

use basin_api::cluster::Mode;
use basin_api::datastore::Datastore;
use basin_api::host::{Host, HostState};
use basin_api::vm::{Boot, Machine, State};
use basin_api::volume::Volume;
use basin_e2e::images::{MIB, existing, vm, volume};
use basin_e2e::{Cluster, Server, until};

fn cluster(servers: usize) -> Cluster {
    let cluster = Cluster::start_with(servers, |_, setup| setup.arg("--engine=fake"));
    cluster.form();
    cluster
}

fn id(server: &Server) -> String {
    let cluster = server.ok(server.client().cluster());
    cluster.answered_by.id
}

/// A machine on a server's own disk, which runs.
fn run_on(server: &Server, name: &str) {
    let disk = format!("{name}-disk");
    let datastore = format!("default-{}", host_of(server));
    let there = |d: &Datastore| d.meta.name == datastore;
    let all = server.ok(server.client().list::<Datastore>()).items;
    let datastore = if all.iter().any(there) { datastore.as_str() } else { "default" };
    server.done(server.client().create::<Volume>(&volume(&disk, Some(datastore))));
    let mut wanted = vm(name, Machine::Q35, Boot::Bios, 64 * MIB);
    wanted.disks = vec![existing(&disk)];
    let guest = server.create(&wanted);
    guest.start();
    guest.wait_state(State::Running);
}

fn host_of(server: &Server) -> String {
    server.ok(server.client().version()).host
}

/// Puts a stopped server's state back to what it was in the cluster.
fn become_again(server: &Server, id: &str, note: bool) {
    let state = server.place.state_dir();
    let all = std::fs::read_dir(&state).expect("the state").flatten().map(|e| e.path());
    let left = all.filter(|p| p.to_string_lossy().contains("cluster.left-"));
    let was = |p: &std::path::PathBuf| {
        std::fs::read_to_string(p.join("host-id")).is_ok_and(|text| text.trim() == id)
    };
    let left = left.into_iter().find(was).expect("what it left");
    std::fs::copy(left.join("host-id"), state.join("host-id")).expect("its id");
    std::fs::rename(&left, state.join("cluster")).expect("its place");
    if !note {
        std::fs::remove_file(state.join("cluster/removed")).expect("its note");
    }
}

#[track_caller]
fn kept(server: &Server, which: &str, words: &str) {
    let said = server.cli(&["host", "remove", which]);
    assert_eq!(said.code, 1, "{}{}", said.stdout, said.stderr);
    assert!(said.stderr.contains(words) && said.stderr.contains("→"), "{}", said.stderr);
}

#[test]
fn an_empty_server_leaves_and_begins_anew() {
    let cluster = cluster(3);
    let [one, two, three] = &cluster.servers[..] else { unreachable!() };
    cluster.wait_members(0, 3);
    for server in &cluster.servers {
        until("every server knows all", || server.host_names() == ["srv1", "srv2", "srv3"]);
        // Asked anywhere, the same is said, and done.
        let label = format!("by={}", host_of(server));
        server.cli(&["host", "label", "srv2", &label]).ok();
        let shown = server.ok(server.client().get::<Host>("srv2"));
        assert_eq!(shown.meta.labels.get("by"), Some(&host_of(server)));
        assert!(server.cli(&["host", "show", "srv2"]).ok().contains("10.99.0.2"));
    }

    run_on(two, "m1");
    kept(three, "srv2", "VMs run there: m1");
    two.guest("m1").power_off();
    kept(one, "srv2", "which no other server reaches");
    two.guest("m1").delete(true);
    for left in two.ok(two.client().list::<Volume>()).items {
        two.cli(&["volume", "delete", &left.meta.name]).ok();
    }
    kept(one, "nobody", "nobody");

    // It keeps a third of the state, too.
    let old = id(two);
    three.cli(&["host", "remove", "srv2"]).ok();
    until("it is alone", || two.mode() == Some(Mode::Single));
    assert_ne!(id(two), old);
    for server in [one, three] {
        until("the others know", || server.host_names() == ["srv1", "srv3"]);
    }
    let datastores = one.ok(one.client().list::<Datastore>()).items;
    assert!(datastores.iter().all(|d| d.meta.name != "default-srv2"), "{datastores:?}");
    // It has what a new server has, and works.
    two.done(two.client().create::<Volume>(&volume("mine", None)));
    two.cli(&["volume", "delete", "mine"]).ok();

    // With what it was it does not come back, with a note of its own or without.
    let new = id(two);
    for note in [true, false] {
        two.stop();
        become_again(two, &old, note);
        two.boot();
        until("it is alone again", || two.mode() == Some(Mode::Single));
        assert!(id(two) != old && id(two) != new);
        assert_eq!(one.host_names(), ["srv1", "srv3"]);
    }

    // As a new one it may join.
    cluster.join(1);
    for server in &cluster.servers {
        until("every server knows all", || server.host_names() == ["srv1", "srv2", "srv3"]);
    }
    cluster.wait_members(1, 3);
}

#[test]
fn the_only_one_that_keeps_the_state_hands_it_over_before_it_leaves() {
    let cluster = cluster(2);
    let [one, two] = &cluster.servers[..] else { unreachable!() };
    until("both are known", || two.host_names() == ["srv1", "srv2"]);
    assert_eq!(two.members(), ["srv1"]);
    two.cli(&["network", "create", "blue", "--subnet", "10.50.0.0/24"]).ok();
    two.cli(&["host", "remove", "srv1"]).ok();
    until("it is alone", || one.mode() == Some(Mode::Single));
    until("the other one leads", || two.leader().as_deref() == Some("srv2"));
    assert_eq!((two.members(), two.host_names()), (vec!["srv2".to_owned()], vec!["srv2".into()]));
    assert!(two.cli(&["network", "list"]).ok().contains("blue"));
    kept(two, "srv2", "only server");
    two.restart();
    two.cli(&["network", "delete", "blue"]).ok();
}

#[test]
fn a_dead_server_is_given_up_and_comes_back_as_another() {
    let cluster = cluster(3);
    let [one, two, three] = &cluster.servers[..] else { unreachable!() };
    cluster.wait_members(0, 3);
    run_on(three, "lost");
    let alive = one.cli(&["host", "remove", "srv3", "--dead"]);
    assert!(alive.stderr.contains("it is alive"), "{}", alive.stderr);
    let old = id(three);
    three.die();
    let state = |server: &Server| server.ok(server.client().get::<Host>("srv3")).state;
    until("its silence is seen", || state(one) == HostState::Unreachable);
    kept(one, "srv3", "VMs run there: lost");
    two.cli(&["host", "remove", "srv3", "--dead"]).ok();
    until("it is forgotten", || one.host_names() == ["srv1", "srv2"]);
    until("its vote is, too", || !one.members().contains(&"srv3".to_owned()));
    // What ran there is known to be off; its disk is lost, but not forgotten.
    one.guest("lost").wait_state(State::Stopped);

    three.revive();
    until("it is alone", || three.mode() == Some(Mode::Single));
    assert_ne!(id(three), old);
    assert_eq!(one.host_names(), ["srv1", "srv2"]);
    assert!(three.ok(three.client().list::<Volume>()).items.is_empty());
    // Nothing that it held was deleted.
    let kept = three.sh(&format!(
        "find {}/cluster.left-*/datastores -type f | wc -l",
        three.place.state_dir().display()
    ));
    assert_ne!(kept.trim(), "0");
}

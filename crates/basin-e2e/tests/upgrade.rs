//! Servers of two releases are one cluster while it is upgraded: the release before, as
//! it was built from its sources, and this one. Guests run on all the time.

#[path = "migrate/scene.rs"]
mod scene;

use std::collections::BTreeSet;
use std::path::PathBuf;

use basin_api::client::Events;
use basin_api::datastore::Datastore;
use basin_api::host::Host;
use basin_api::vm::{Machine, State};
use basin_api::volume::Volume;
use basin_e2e::images::volume;
use basin_e2e::{BOOT, Cluster, Guest, Server, eventually, until};
use scene::{busy, collector, disk, form, nothing_left};

/// Where the release before is; `cargo run -p xtask -- previous` builds it.
fn before() -> PathBuf {
    let path = std::env::var_os("BASIN_PREVIOUS_BIN");
    let path = path.expect("set BASIN_PREVIOUS_BIN to what 'cargo run -p xtask -- previous' says");
    std::fs::canonicalize(&path).unwrap_or_else(|e| panic!("BASIN_PREVIOUS_BIN: {e}"))
}

/// Replaces the daemon's program, as a package does.
fn change(server: &Server, binary: &std::path::Path) {
    server.stop();
    server.set_up(|setup| setup.binary(binary.to_owned()));
    server.boot();
}

fn name(server: &Server) -> String {
    server.ok(server.client().version()).host
}

/// Which release each server runs, as one of them knows.
fn releases(asked: &Server) -> Vec<String> {
    let mut hosts: Vec<Host> = asked.ok(asked.client().list::<Host>()).items;
    hosts.sort_by(|a, b| a.meta.name.cmp(&b.meta.name));
    hosts.into_iter().map(|h| h.status.map_or_else(String::new, |s| s.daemon_version)).collect()
}

/// Waits until one of these leads. A daemon that stops hands over, to whom it may.
fn have_one_of(cluster: &Cluster, wanted: &[usize]) -> String {
    let names: Vec<String> = wanted.iter().map(|&n| name(&cluster.servers[n])).collect();
    let asked = &cluster.servers[wanted[0]];
    eventually("one of them leads", BOOT, || {
        let leader = asked.leader()?;
        if names.contains(&leader) {
            return Some(leader);
        }
        // It may have left already, and not be followed yet.
        cluster.servers.iter().find(|s| name(s) == leader)?.restart();
        None
    })
}

fn etcd_pids(cluster: &Cluster) -> BTreeSet<u32> {
    let all = cluster.servers.iter().flat_map(|s| s.place.everything());
    let is_etcd = |pid: &u32| {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm"));
        comm.is_ok_and(|comm| comm.trim() == "etcd")
    };
    all.filter(is_etcd).collect()
}

/// What is seen of a change, in an event stream that was opened before it.
fn hears(server: &Server, events: &mut Events, what: &str) {
    eventually(&format!("{} hears of {what}", name(server)), BOOT, || {
        let next = server.call(async { tokio::time::timeout(BOOT, events.next()).await });
        format!("{:?}", next.expect("an event in time").expect("an event"))
            .contains(what)
            .then_some(())
    });
}

/// Every server takes changes, tells all others, and shows the guest's console.
fn one_entity(cluster: &Cluster, round: &str, guest: &str) {
    let mut streams: Vec<Events> =
        cluster.servers.iter().map(|s| s.ok(s.client().events(&["volume"], None))).collect();
    for (n, server) in cluster.servers.iter().enumerate() {
        let made = format!("{round}-{n}");
        server.done(server.client().create::<Volume>(&volume(&made, None)));
        server.cli(&["host", "label", "srv1", &format!("{made}=yes")]).ok();
        for (other, events) in cluster.servers.iter().zip(&mut streams) {
            hears(other, events, &made);
            until("every server knows of it", || {
                let host = other.ok(other.client().get::<Host>("srv1"));
                let volumes = other.ok(other.client().list::<Volume>()).items;
                host.meta.labels.contains_key(&made) && volumes.iter().any(|v| v.meta.name == made)
            });
        }
        let mut console = Guest::console(&server.guest(guest));
        assert_eq!(console.run("cat /tmp/mark"), "here");
        server.done(server.client().delete::<Volume>(&made));
    }
}

#[test]
fn a_cluster_of_the_release_before_is_upgraded_server_by_server() {
    let (old, new) = (before(), basin_e2e::Setup::new().binary);
    let cluster = Cluster::start_with(3, |_, setup| setup.binary(old.clone()));
    form(&cluster);
    let [one, two, three] = &cluster.servers[..] else { unreachable!() };
    let was = releases(one)[0].clone();
    assert_eq!(releases(one), [&was, &was, &was].map(String::clone));
    let (members, etcd) = (one.members(), etcd_pids(&cluster));
    assert_eq!((members.len(), etcd.len()), (3, 3));

    let collector = collector(&cluster);
    let mut vm = one.micro("mover", Machine::Q35);
    vm.disks = vec![disk("shared")];
    let mut busy = busy(one, vm, &collector);
    let id = busy.guest.vm().meta.id;
    busy.console.run("echo here >/tmp/mark");
    let move_to = |asked: &Server, more: &[&str]| {
        asked.cli(&[&["vm", "migrate", "mover", "--to"], more].concat()).ok();
    };
    if busy.on() != "srv2" {
        move_to(one, &["srv2"]);
    }
    collector.forget();

    // One of three is new; the release before leads.
    change(one, &new);
    have_one_of(&cluster, &[1, 2]);
    let now = one.ok(one.client().version()).version;
    until("it says what it runs", || releases(two) == [&now, &was, &was].map(String::clone));
    one_entity(&cluster, "first", "mover");
    move_to(three, &["srv1"]);
    assert_eq!(busy.on(), "srv1");
    nothing_left(two, &id);
    // And back, with its disk, from block daemon to block daemon.
    move_to(one, &["srv3", "--storage", "default-srv3"]);
    assert_eq!(busy.on(), "srv3");
    nothing_left(one, &id);

    // Two of three are new, and lead.
    change(two, &new);
    have_one_of(&cluster, &[0, 1]);
    until("it says what it runs", || releases(three) == [&now, &now, &was].map(String::clone));
    one_entity(&cluster, "second", "mover");
    move_to(three, &["srv2", "--storage", "shared"]);
    move_to(two, &["srv3"]);
    assert_eq!(busy.on(), "srv3");

    // The last one is upgraded under the guest, which is adopted.
    let on_three = three.guest("mover");
    let qemu = on_three.qemu_pid();
    change(three, &new);
    until("it says what it runs", || releases(one) == [&now, &now, &now].map(String::clone));
    one_entity(&cluster, "third", "mover");
    assert_eq!((on_three.qemu_pid(), on_three.state()), (qemu, State::Running));

    // And back, for somebody who has a reason: by one release, server by server.
    change(three, &old);
    have_one_of(&cluster, &[2]);
    until("it says what it runs", || releases(one) == [&now, &now, &was].map(String::clone));
    one_entity(&cluster, "back", "mover");
    assert_eq!((on_three.qemu_pid(), on_three.state()), (qemu, State::Running));
    change(three, &new);

    assert_eq!((one.members(), etcd_pids(&cluster)), (members, etcd), "etcd was left alone");
    collector.wait_more(50);
    let report = collector.report();
    assert_eq!((report.ran_twice, report.incarnations.len()), (None, 1));
    println!("longest silence {:?}, lost {}", report.longest_silence, report.lost);
    busy.console = busy.guest.console();
    busy.console.run(":");
    busy.check_disks();
    let stores = one.ok(one.client().list::<Datastore>()).items;
    assert_eq!(stores.len(), 4);
}

//! Maintenance: servers that are emptied by moving what runs there, and kept empty.

use std::collections::BTreeMap;

use basin_api::host::{Host, HostState};
use basin_api::task::{Task, TaskState};
use basin_api::vm::{Machine, State, Vm};
use basin_e2e::{BOOT, Cluster, Server, eventually, process, until};

use crate::scene::{cluster, disk};

const FAULT: &str = "BASIN_FAULT";

fn host(server: &Server, name: &str) -> Host {
    server.ok(server.client().get::<Host>(name))
}

/// Where each VM has a machine, by what runs on the servers.
fn machines(cluster: &Cluster) -> BTreeMap<String, Vec<String>> {
    let first = cluster.servers.iter().find(|server| server.is_up()).expect("a server");
    let vms = first.ok(first.client().list::<Vm>()).items;
    let on = |id: &str| {
        let has = |server: &Server| {
            let cgroups = server.place.cgroups();
            let mut pids =
                cgroups.iter().flat_map(|c| process::in_cgroup(&c.join(format!("vm-{id}"))));
            pids.any(process::alive)
        };
        let servers = cluster.servers.iter().enumerate().filter(|(_, server)| has(server));
        servers.map(|(n, _)| format!("srv{}", n + 1)).collect()
    };
    vms.into_iter().map(|vm| (vm.meta.name, on(&vm.meta.id))).collect()
}

/// Each runs once, where its record says, and has never been started anew.
fn all_run_once(cluster: &Cluster, asked: &Server, names: &[&str]) {
    for name in names {
        let vm: Vm = asked.ok(asked.client().get(name));
        assert_eq!(vm.status.state, State::Running, "{vm:?}");
        let on = vm.status.host.and_then(|h| h.name).expect("a server");
        until("its machine is there and nowhere else", || machines(cluster)[*name] == [on.clone()]);
        let mut console = asked.guest(name).console();
        assert_eq!(console.run("cat /tmp/mark"), *name, "it goes on as it was");
    }
}

fn moves_of(server: &Server) -> Vec<Task> {
    let tasks = server.ok(server.client().tasks(None)).items;
    tasks.into_iter().filter(|task| task.kind == "vm-migrate").collect()
}

/// So many were under way at once.
fn most_at_once(moves: &[Task]) -> usize {
    let under_way = |at: &str| {
        let spans = moves.iter();
        spans
            .filter(|t| *t.created_at <= *at && t.finished_at.as_deref().unwrap_or("9") > at)
            .count()
    };
    moves.iter().map(|task| under_way(&task.created_at)).max().unwrap_or(0)
}

#[test]
fn servers_are_emptied_within_limits_and_kept_empty() {
    let cluster = cluster(3);
    let [one, two, three] = &cluster.servers[..] else { unreachable!() };

    // Those that are in maintenance get no VM, however empty they are.
    for server in ["srv2", "srv3"] {
        two.cli(&["host", "drain", server]).ok();
        assert_eq!(host(two, server).state, HostState::Drained);
    }
    let names = ["m1", "m2", "m3", "m4"];
    for name in names {
        let mut vm = one.micro(name, Machine::Q35);
        if name == "m1" {
            vm.disks = vec![disk("default")];
        }
        one.create(&vm).start();
        let on = one.guest(name).vm().status.host.and_then(|h| h.name);
        assert_eq!(on.as_deref(), Some("srv1"), "{name}");
    }
    for name in names {
        one.guest(name).shell().run(&format!("echo {name} > /tmp/mark"));
    }
    let nowhere = two.cli(&["host", "drain", "srv1"]);
    assert_eq!(nowhere.code, 1, "{nowhere:?}");
    assert!(nowhere.stderr.contains("these VMs cannot leave srv1"), "{}", nowhere.stderr);
    assert_eq!(host(one, "srv1").committed.vms, 4);
    for server in ["srv2", "srv3"] {
        one.cli(&["host", "undrain", server]).ok();
    }

    // The drain was waiting for that. What only this server reaches keeps one VM there.
    let said = two.cli(&["host", "drain", "srv1"]);
    assert_eq!(said.code, 1, "{said:?}");
    let (first, others) = (said.stderr.lines().next().unwrap_or_default(), &names[1..]);
    assert!(first.contains("these VMs cannot leave srv1"), "{}", said.stderr);
    let reason = "'default', which only its server reaches";
    assert!(said.stderr.contains("m1") && said.stderr.contains(reason), "{}", said.stderr);
    assert!(others.iter().all(|name| !said.stderr.contains(name)), "{}", said.stderr);
    assert!(said.stderr.contains("the drain goes on by itself"), "{}", said.stderr);
    let shown = three.cli(&["host", "show", "srv1"]).ok();
    assert!(shown.contains("Cannot leave") && shown.contains(reason), "{shown}");
    assert!(shown.contains("draining"), "{shown}");
    let moves = moves_of(one);
    assert_eq!((moves.len(), most_at_once(&moves)), (3, 2), "{moves:#?}");
    all_run_once(&cluster, three, &names);

    // Nothing comes to it: not by choice, and not by name.
    let new = two.create(&one.micro("new", Machine::Q35));
    new.start();
    assert_ne!(new.vm().status.host.and_then(|h| h.name).as_deref(), Some("srv1"));
    let refused = one.cli(&["vm", "migrate", "m2", "--to", "srv1"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("srv1 is being drained"), "{}", refused.stderr);
    new.delete(true);

    // With its disk, the last one leaves.
    let said = three.cli(&["host", "drain", "srv1", "--move-disks"]).ok();
    assert!(said.contains("is empty, and takes no VMs"), "{said}");
    assert_eq!(host(two, "srv1").state, HostState::Drained);
    let vm = one.guest("m1").vm();
    assert_ne!(vm.status.host.and_then(|h| h.name).as_deref(), Some("srv1"));
    one.no_trace(&[&vm.meta.id, &vm.disks[0].volume.id], 0, "a drained server");
    all_run_once(&cluster, one, &names);
    one.cli(&["host", "undrain", "srv1"]).ok();
    assert_eq!(host(two, "srv1").state, HostState::Ready);

    // A drain is nobody's: the leader dies under its first move, and the next one goes on.
    let full = if host(one, "srv2").committed.vms > 1 { 1 } else { 2 };
    let name = format!("srv{}", full + 1);
    let on_it = host(one, &name).committed.vms;
    assert!(on_it > 1, "{on_it} VMs on {name}");
    cluster.have_lead(0, |setup| setup.env(FAULT, "vm-migrate/prepare/before"));
    let asked = &cluster.servers[3 - full];
    let before = moves_of(asked).len();
    let begun = asked.cli(&["host", "drain", &name, "--move-disks", "--no-wait"]);
    println!("under the leader that dies: {begun:?}");
    one.wait_dead();
    until("another one leads", || two.leads() || three.leads());
    one.set_up(|setup| setup.without_env(FAULT));
    one.boot();
    eventually("it is drained", BOOT, || {
        (host(asked, &name).state == HostState::Drained).then_some(())
    });
    all_run_once(&cluster, asked, &names);
    let moves = moves_of(asked);
    assert!(moves.len() - before >= on_it as usize, "{moves:#?}");
    assert!(moves.iter().all(|task| task.state.is_over() && task.state != TaskState::Cancelled));
    assert_eq!(host(one, &name).committed.vms, 0);
}

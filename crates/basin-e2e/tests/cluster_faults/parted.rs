//! Three servers that all lose each other: none can change anything, each goes on with what
//! it has and tells what it knows; together again they are one cluster as before.

use basin_api::client::ClientError;
use basin_api::network::Network;
use basin_api::vm::{Machine, State, Vm};
use basin_e2e::{BOOT, Cluster, Guest, Server, eventually, process, until};

use crate::scene::cluster;

/// The machines of a VM, on any server.
fn machines(cluster: &Cluster, id: &str) -> Vec<u32> {
    let cgroups = cluster.servers.iter().flat_map(|server| server.place.cgroups());
    let pids = cgroups.flat_map(|c| process::in_cgroup(&c.join(format!("vm-{id}"))));
    let mut pids: Vec<u32> = pids.filter(|&pid| process::alive(pid)).collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

fn create_network(server: &Server, name: &str, third: u8) -> basin_e2e::Cli {
    server.cli(&["network", "create", name, "--subnet", &format!("10.60.{third}.0/24")])
}

fn networks(server: &Server) -> Vec<String> {
    let all = server.call(server.client().list::<Network>()).map(|l| l.items).unwrap_or_default();
    all.into_iter().map(|n| n.meta.name).collect()
}

#[test]
fn three_servers_that_lose_each_other_run_on_and_become_one_again() {
    let cluster = cluster(3);
    let first = &cluster.servers[0];
    let names = ["a", "b", "c"];
    let guests: Vec<Guest<'_>> =
        names.iter().map(|name| first.create(&first.micro(name, Machine::Q35))).collect();
    guests.iter().for_each(Guest::start);
    // One on each, and each asked on its own server.
    let mut own = Vec::new();
    for guest in &guests {
        let vm = guest.vm();
        let on = vm.status.host.and_then(|h| h.name).expect("a server");
        let on = ["srv1", "srv2", "srv3"].iter().position(|name| *name == on).expect("a server");
        guest.shell().run(&format!("echo {} > /tmp/mark", guest.name));
        let [machine] = machines(&cluster, &vm.meta.id)[..] else { panic!("one machine") };
        own.push((on, guest.name.as_str(), vm.meta.id, machine));
    }
    own.sort();
    assert_eq!(own.iter().map(|o| o.0).collect::<Vec<_>>(), [0, 1, 2], "{own:?}");

    for n in 0..3 {
        cluster.cut_off(n);
    }
    for (n, name, _, machine) in &own {
        let server = &cluster.servers[*n];
        until("the loss is noticed", || {
            server.ok(server.client().cluster()).store.is_some_and(|s| s.lost.is_some())
        });
        until("it leads nobody", || !server.leads());
        // What is known of all is told, with how old it is.
        let list = server.cli(&["vm", "list"]);
        assert_eq!(list.code, 0, "{list:?}");
        assert!(names.iter().all(|name| list.stdout.contains(name)), "{list:?}");
        assert!(list.stderr.contains("s old"), "{list:?}");
        server.ok(server.client().list::<Vm>());
        assert!(server.client().state_age().is_some());
        // Nothing can be changed, and that is said.
        let refused = create_network(server, &format!("late{n}"), 1);
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.stderr.contains("nothing can be changed"), "{refused:?}");
        match server.call(server.client().vm_action(name, basin_api::client::VmAction::PowerOff)) {
            Err(ClientError::Problem(problem)) => {
                assert!(["no-leader", "store-unavailable"].contains(&problem.code.as_str()));
            }
            other => panic!("not refused: {other:?}"),
        }
        // The guest runs on, and answers on its console.
        assert!(process::alive(*machine));
        assert_eq!(server.guest(name).console().run("cat /tmp/mark"), *name);
    }

    for n in 0..3 {
        cluster.reconnect(n);
    }
    let servers = &cluster.servers;
    eventually("one leads, and all know which", BOOT, || {
        let leads: Vec<bool> = servers.iter().map(Server::leads).collect();
        let known: Vec<Option<String>> = servers.iter().map(Server::leader).collect();
        let one = leads.iter().filter(|leads| **leads).count() == 1;
        let same = known.iter().all(|name| name.is_some() && *name == known[0]);
        (one && same).then_some(())
    });
    for (n, server) in (0..).zip(servers) {
        until("changes are made again", || {
            create_network(server, &format!("n{n}"), 10 + n).code == 0
        });
    }
    for server in servers {
        until("every server knows what each has made", || {
            let known = networks(server);
            (0..3).all(|n| known.contains(&format!("n{n}")))
        });
        until("the state is current", || !server.cli(&["vm", "list"]).stderr.contains("old"));
        assert!(!networks(server).iter().any(|name| name.starts_with("late")));
    }
    let new = servers[1].create(&first.micro("new", Machine::Q35));
    new.start();
    new.shell().run(":");
    // None was started anew, or twice.
    for (n, name, id, machine) in &own {
        let guest = servers[(n + 1) % 3].guest(name);
        guest.wait_state(State::Running);
        assert_eq!(machines(&cluster, id), [*machine], "{name}");
        assert_eq!(guest.console().run("cat /tmp/mark"), *name);
    }
    assert_eq!(machines(&cluster, &new.vm().meta.id).len(), 1);
}

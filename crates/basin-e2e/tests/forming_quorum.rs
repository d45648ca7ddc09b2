//! The servers that keep the state are away: what runs runs on, what is known can be
//! read and says how old it is, and what cannot be kept is refused with the reason.

use std::time::Duration;

use basin_api::client::ClientError;
use basin_api::network::Network;
use basin_api::vm::{Machine, State, Vm};
use basin_e2e::{Cluster, Server, process, until};

fn etcd_of(server: &Server) -> Vec<u32> {
    let all = server.place.everything();
    all.into_iter().filter(|pid| process::command_line(*pid)[0].ends_with("etcd")).collect()
}

fn create_network(server: &Server, name: &str, third: u8) -> basin_e2e::Cli {
    server.cli(&["network", "create", name, "--subnet", &format!("10.50.{third}.0/24")])
}

fn networks(server: &Server) -> Vec<String> {
    let all = server.call(server.client().list::<Network>()).map(|l| l.items).unwrap_or_default();
    all.into_iter().map(|n| n.meta.name).collect()
}

#[test]
fn without_a_quorum_everything_can_be_read_and_nothing_changed() {
    let cluster = Cluster::start(3);
    cluster.form();
    let [one, two, three] = &cluster.servers[..] else { unreachable!() };
    cluster.wait_members(0, 3);
    let guest = one.create(&one.micro("run", Machine::Q35));
    guest.start();
    guest.shell().run("echo before >/tmp/mark");
    assert!(!one.cli(&["vm", "list"]).stderr.contains("old"));

    two.die();
    three.die();
    until("the loss is noticed", || {
        one.ok(one.client().cluster()).store.is_some_and(|s| s.lost.is_some())
    });
    let list = one.cli(&["vm", "list"]);
    assert!(list.stdout.contains("run") && list.stderr.contains("s old"), "{list:?}");
    let shown = one.cli(&["cluster", "show"]).ok();
    assert!(shown.contains("nothing can be changed now"), "{shown}");
    let host = one.cli(&["host", "list"]);
    assert!(host.code == 0 && host.stdout.contains("srv3"), "{host:?}");
    let tasks = one.cli(&["task", "list"]);
    assert!(tasks.code == 0 && tasks.stdout.contains("vm-create"), "{tasks:?}");
    let client = one.client();
    one.ok(client.list::<Vm>());
    assert!(client.state_age().is_some_and(|age| age < Duration::from_secs(600)));
    // A change is refused, by its reason, and is not made later.
    let refused = create_network(one, "late", 1);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("nothing can be changed"), "{refused:?}");
    match one.call(one.client().delete::<Network>("default")) {
        Err(ClientError::Problem(problem)) => {
            assert!(["no-leader", "store-unavailable"].contains(&problem.code.as_str()));
            assert_eq!(problem.status, 503);
        }
        other => panic!("not refused: {other:?}"),
    }
    // The guest knows nothing of it, and who is on its console neither.
    let mut console = guest.console();
    assert_eq!(console.run("cat /tmp/mark"), "before");

    two.revive();
    until("changes are made again", || create_network(one, "blue", 2).code == 0);
    until("the state is current", || !one.cli(&["vm", "list"]).stderr.contains("old"));
    until("the other one knows", || networks(two).contains(&"blue".to_owned()));
    assert!(!networks(one).contains(&"late".to_owned()));
    guest.wait_state(State::Running);
    three.revive();
    until("it is back", || networks(three).contains(&"blue".to_owned()));
    assert_eq!(console.run("cat /tmp/mark"), "before");
    guest.delete(true);
}

#[test]
fn a_whole_cluster_comes_back_in_any_order() {
    let cluster = Cluster::start_with(3, |_, setup| setup.arg("--engine=fake"));
    cluster.form();
    cluster.wait_members(0, 3);
    create_network(&cluster.servers[1], "blue", 1).ok();
    for (round, order) in [[2, 0, 1], [1, 2, 0]].into_iter().enumerate() {
        for server in &cluster.servers {
            server.kill();
            etcd_of(server).into_iter().for_each(process::kill_hard);
        }
        std::thread::scope(|scope| {
            for n in order {
                let server = &cluster.servers[n];
                scope.spawn(|| server.boot());
                std::thread::sleep(Duration::from_millis(700));
            }
        });
        for server in &cluster.servers {
            until("it knows what it knew", || networks(server).contains(&"blue".to_owned()));
            until("it knows who leads", || server.leader().is_some());
        }
        create_network(&cluster.servers[order[0]], &format!("n{round}"), 10 + round as u8).ok();
    }
}

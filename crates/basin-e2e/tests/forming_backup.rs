//! Servers that keep the state are lost: one is replaced, and when too many are gone
//! everything comes back from a backup.

use basin_api::network::Network;
use basin_e2e::{Cluster, Server, until};

fn cluster(servers: usize) -> Cluster {
    let cluster = Cluster::start_with(servers, |_, setup| {
        setup.arg("--engine=fake").env("BASIN_REPLACE_MEMBER_AFTER", "15")
    });
    cluster.form();
    cluster.wait_members(0, 3);
    cluster
}

fn create_network(server: &Server, name: &str, third: u8) {
    server.cli(&["network", "create", name, "--subnet", &format!("10.50.{third}.0/24")]).ok();
}

fn networks(server: &Server) -> Vec<String> {
    let all = server.call(server.client().list::<Network>()).map(|l| l.items).unwrap_or_default();
    let mut names: Vec<String> = all.into_iter().map(|n| n.meta.name).collect();
    names.sort();
    names
}

#[test]
fn a_lost_member_is_replaced_by_a_server_that_had_none() {
    let cluster = cluster(4);
    let named = |n: usize| format!("srv{}", n + 1);
    let members = cluster.servers[0].members();
    let spare = (0..4).find(|&n| !members.contains(&named(n))).expect("one without");
    // One that keeps the state dies, and not the one that is asked below.
    let lost = (1..4).find(|&n| n != spare).expect("one with");
    cluster.servers[lost].die();
    until("another one has its place", || {
        let members = cluster.servers[0].members();
        members.len() == 3 && members.contains(&named(spare)) && !members.contains(&named(lost))
    });
    create_network(&cluster.servers[spare], "blue", 1);
    // It comes back as one of those that keep none, and knows all.
    cluster.servers[lost].revive();
    until("it knows what it missed", || {
        networks(&cluster.servers[lost]).contains(&"blue".to_owned())
    });
    create_network(&cluster.servers[lost], "green", 2);
    cluster.wait_members(lost, 3);
    assert!(!cluster.servers[0].members().contains(&named(lost)));
}

#[test]
fn everything_comes_back_from_a_backup() {
    let cluster = cluster(3);
    let [one, two, three] = &cluster.servers[..] else { unreachable!() };
    create_network(two, "kept", 1);
    // Any server makes one. It is nobody else's to read.
    let file = three.place.dir.join("backup");
    let path = file.display().to_string();
    assert!(three.cli(&["cluster", "backup", &path]).ok().contains("saved as"));
    assert_eq!(three.sh(&format!("stat -c %a {path}")).trim(), "600");
    assert!(!three.place.dir.join("backup.part").exists());
    create_network(one, "late", 2);

    let state = one.place.state_dir().display().to_string();
    let restore = |file: &str| one.cli(&["cluster", "restore", file, "--state-dir", &state]);
    let refused = restore(&path);
    assert!(refused.code == 1 && refused.stderr.contains("in use by another"), "{refused:?}");
    for server in &cluster.servers {
        server.kill();
    }
    // What is no backup changes nothing.
    let rubbish = one.place.dir.join("rubbish");
    std::fs::write(&rubbish, [7; 4096]).unwrap();
    let refused = restore(&rubbish.display().to_string());
    assert!(refused.code == 1 && refused.stderr.contains("cannot be restored"), "{refused:?}");

    let said = restore(&path).ok();
    assert!(said.contains("srv1, srv2, srv3"), "{said}");
    // Two thirds of what was lost still run, and are not listened to.
    one.boot();
    until("the first knows what was kept", || networks(one) == ["default", "kept"]);
    assert_eq!(one.host_names(), ["srv1", "srv2", "srv3"]);
    two.boot();
    three.boot();
    for server in &cluster.servers {
        until("they follow", || networks(server) == ["default", "kept"]);
    }
    cluster.wait_members(1, 3);
    create_network(three, "new", 3);
    until("all are one again", || networks(one).contains(&"new".to_owned()));
    for server in &cluster.servers {
        server.restart();
        until("it stays so", || networks(server) == ["default", "kept", "new"]);
    }
}

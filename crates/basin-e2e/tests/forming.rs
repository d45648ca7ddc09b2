//! Servers become one: state moves into etcd, others join, and any of them answers.

use basin_api::cluster::Mode;
use basin_api::network::Network;
use basin_e2e::{Cluster, until};

#[test]
fn three_servers_become_one_and_any_of_them_answers() {
    let cluster = Cluster::start(3);
    cluster.form();
    let (first, third) = (&cluster.servers[0], &cluster.servers[2]);
    for server in &cluster.servers {
        until("every server knows all", || server.host_names() == ["srv1", "srv2", "srv3"]);
        let seen = server.ok(server.client().cluster());
        assert_eq!(seen.mode, Mode::Cluster);
    }
    // A change that is asked of a server that does not lead is read there, next.
    third.cli(&["network", "create", "blue", "--subnet", "10.50.0.0/24"]).ok();
    let made = third.ok(third.client().list::<Network>()).items;
    assert!(made.iter().any(|n| n.meta.name == "blue"), "{made:?}");
    until("the others know it", || {
        first.ok(first.client().list::<Network>()).items.iter().any(|n| n.meta.name == "blue")
    });
    // etcd gets as many members as three servers should have.
    cluster.wait_members(0, 3);
}

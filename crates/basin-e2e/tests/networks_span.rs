//! A network is the same on every server: guests on different ones reach each other by
//! address and by name, and a connection between them outlives the moves of both.

use basin_api::vm::{Machine, Vm};
use basin_e2e::{Cluster, Guest, until};

fn on(guest: &Guest<'_>) -> String {
    guest.vm().status.host.and_then(|h| h.name).unwrap_or_default()
}

#[test]
fn guests_on_different_servers_share_a_network_and_keep_their_connections() {
    let cluster = Cluster::start(3);
    cluster.form();
    let first = &cluster.servers[0];
    until("all servers are ready", || {
        let hosts = first.ok(first.client().list::<basin_api::host::Host>()).items;
        hosts.len() == 3 && hosts.iter().all(|h| h.status.is_some())
    });
    let a = first.create(&first.micro("a", Machine::Q35));
    a.start();
    let b = first.create(&first.micro("b", Machine::Q35));
    b.start();
    assert_ne!(on(&a), on(&b), "the emptiest server takes the next one");
    let mut console = a.online();
    b.wait_log("micro: address", 1);

    // By address, and by the name that DHCP and DNS give, whichever server answers.
    let address = b.address();
    let ping = format!("until ping -c1 -W1 {address} > /dev/null; do :; done; echo reached");
    assert!(console.run(&ping).contains("reached"));
    let said = console.run("ping -c1 -W5 b");
    assert!(said.contains(&address), "{said}");

    console.send(&format!("guest-tool tcp-count to={address}:7 every=20 &"));
    console.expect("tcp-count: 20 ");
    let (one, other) = (on(&a), on(&b));
    let free = ["srv1", "srv2", "srv3"].into_iter().find(|s| **s != one && **s != other);
    let free = free.expect("three servers, two guests");
    // The one that serves, to where nobody is; then the one that asks, to where it was.
    for (vm, to) in [("b", free), ("a", &other), ("b", &one), ("a", free)] {
        first.cli(&["vm", "migrate", vm, "--to", to]).ok();
        let vm: Vm = first.ok(first.client().get(vm));
        assert_eq!(vm.status.host.and_then(|h| h.name).as_deref(), Some(to));
        a.wait_answers();
    }
    // New connections find it where it is now.
    let mut console = cluster.servers[1].guest("a").console();
    console.run(":");
    let again = console.run(&ping);
    assert!(again.contains("reached"), "{again}");
}

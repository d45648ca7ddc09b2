//! The network: guests reach each other and the world, and the server stays as it was.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::TcpListener;
use std::time::Instant;

use basin_api::network::Network;
use basin_api::vm::{Machine, NewNic};
use basin_e2e::{SOON, Server, Setup};

#[test]
fn two_guests_and_the_world() {
    let server = Setup::new().outside().start();
    let network = server.ok(server.client().get::<Network>("default"));
    let chosen = network.subnet.replace(".0/24", ".77");
    assert_ne!(chosen, network.subnet, "the default network is a /24");
    let mut a = server.micro("a", Machine::Microvm);
    a.nics = Some(vec![NewNic {
        network: "default".to_owned(),
        mac: Some("52:54:00:aa:bb:cc".to_owned()),
        address: Some(chosen.clone()),
    }]);
    let a = server.create(&a);
    let b = server.create(&server.micro("b", Machine::Q35));
    a.start();
    b.start();
    let (mut on_a, mut on_b) = (a.online(), b.online());
    assert_eq!(a.address(), chosen);
    assert!(on_a.run("cat /sys/class/net/eth0/address").contains("52:54:00:aa:bb:cc"));
    assert!(on_a.run("ip -4 addr show eth0").contains(&format!("inet {chosen}/24")));

    on_b.run(&format!("ping -c 1 -W 20 {chosen}"));
    on_b.run(&format!("ping -c 1 -W 20 a.{}", network.domain));
    on_a.run("ping -c 1 -W 20 b");
    assert_eq!(on_a.run(&format!("echo hello | nc -w 20 {} 7", b.address())), "hello");

    // Out, by the server's own address; not in.
    let outside = server.outside();
    on_b.run(&format!("ping -c 1 -W 20 {}", outside.address()));
    let listener = outside.enter(|| TcpListener::bind((outside.address(), 9999)).unwrap());
    on_b.send(&format!("echo greetings | nc -w 20 {} 9999", outside.address()));
    let (mut connection, peer) = listener.accept().unwrap();
    let mut said = [0; 9];
    connection.read_exact(&mut said).unwrap();
    assert_eq!((&said, peer.ip().to_string().as_str()), (b"greetings", outside.server_address()));
    let route = ["route", "add", &network.subnet, "via", outside.server_address()];
    assert!(outside.command("ip").args(route).status().unwrap().success());
    let ping = outside.command("ping").args(["-c", "1", "-W", "2", &chosen]).output().unwrap();
    assert!(!ping.status.success(), "guests cannot be reached from outside");
}

/// Everything about the server's network that Basin could have changed.
fn network_of(server: &Server) -> BTreeSet<String> {
    let said = server.sh(
        "nft list ruleset; ip -o link | sed 's/ qdisc.*//'; ip -o address; \
         ip route show table all; ip rule; \
         sysctl -a 2>/dev/null | grep -E '^net\\.(ipv4|ipv6|bridge)\\.' | grep -v -E 'random|_stat|fastopen_key'",
    );
    said.lines().map(str::to_owned).collect()
}

/// What one has and the other has not.
fn changes(before: &BTreeSet<String>, after: &BTreeSet<String>) -> Vec<String> {
    before.symmetric_difference(after).cloned().collect()
}

/// What is asked for is done soon, not at once.
#[track_caller]
fn assert_restored(server: &Server, before: &BTreeSet<String>) {
    let since = Instant::now();
    let mut left = changes(before, &network_of(server));
    while !left.is_empty() && since.elapsed() < SOON {
        left = changes(before, &network_of(server));
    }
    assert_eq!(left, [""; 0]);
}

#[test]
fn a_network_leaves_the_server_as_it_was() {
    let server = Setup::new().outside().prepare();
    server
        .sh("nft add table inet mine; nft add chain inet mine c; nft add rule inet mine c counter");
    let before = network_of(&server);
    server.boot();
    let guest = server.create(&server.micro("n", Machine::Microvm));
    guest.start();
    guest.online().run(&format!("ping -c 1 -W 20 {}", server.outside().address()));
    assert!(!changes(&before, &network_of(&server)).is_empty());
    let refused = server.cli(&["network", "delete", "default"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains('n'), "{}", refused.stderr);

    guest.delete(true);
    server.cli(&["network", "delete", "default"]).ok();
    assert_restored(&server, &before);
    // And it is not back after a restart, for nobody asked for it.
    server.restart();
    assert_restored(&server, &before);
}

//! A cluster whose state is in an etcd that Basin does not run.

use std::process::{Child, Stdio};

use basin_api::cluster::Mode;
use basin_api::network::Network;
use basin_e2e::{Cluster, GATEWAY, Server, until};

/// Somebody else's etcd, in the servers' network. Ends with the fabric.
struct Etcd(Child);

impl Etcd {
    fn start(cluster: &Cluster) -> Etcd {
        let dir = cluster.fabric.place.dir.join("etcd");
        let mut command = cluster.fabric.command("etcd");
        command.arg(format!("--data-dir={}", dir.display()));
        for what in ["listen-client-urls", "advertise-client-urls"] {
            command.arg(format!("--{what}={}", url()));
        }
        command.args(["--log-level=error", "--listen-peer-urls=http://127.0.0.1:0"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Etcd(command.spawn().expect("run etcd"))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn url() -> String {
    format!("http://{GATEWAY}:2379")
}

fn networks(server: &Server) -> Vec<String> {
    let all = server.call(server.client().list::<Network>()).map(|l| l.items).unwrap_or_default();
    all.into_iter().map(|n| n.meta.name).collect()
}

#[test]
fn the_state_can_be_in_an_etcd_of_somebody_elses() {
    let cluster = Cluster::start_with(3, |_, setup| setup.arg("--engine=fake"));
    let [one, two, three] = &cluster.servers[..] else { unreachable!() };
    let init = |n: usize, server: &Server| {
        let address = cluster.address(n).to_string();
        server.cli(&["init", "--advertise", &address, "--etcd", &url()])
    };
    // One that is not there changes nothing.
    let refused = init(0, one);
    assert!(refused.code == 1 && refused.stderr.contains("→"), "{refused:?}");
    assert_eq!(one.mode(), Some(Mode::Single));

    let etcd = Etcd::start(&cluster);
    one.cli(&["network", "create", "blue", "--subnet", "10.50.0.0/24"]).ok();
    until("etcd is up", || init(0, one).code == 0);
    assert!(networks(one).contains(&"blue".to_owned()));
    cluster.join(1);
    two.cli(&["network", "create", "green", "--subnet", "10.51.0.0/24"]).ok();
    until("it is known", || networks(one).contains(&"green".to_owned()));
    assert!(two.cli(&["cluster", "show"]).ok().contains("external"));
    // Another cluster cannot have the same etcd, and is told so.
    let refused = init(2, three);
    assert!(refused.stderr.contains("another cluster"), "{refused:?}");
    assert_eq!(three.mode(), Some(Mode::Single));
    // Its backup is its owner's.
    let refused = two.cli(&["cluster", "backup", "/nowhere"]);
    assert!(refused.stderr.contains("etcdctl snapshot save"), "{refused:?}");
    // Servers come back to it, and one that is removed leaves.
    one.restart();
    assert!(networks(one).contains(&"green".to_owned()));
    one.cli(&["host", "remove", "srv2"]).ok();
    until("it is alone", || two.mode() == Some(Mode::Single));
    assert_eq!(one.host_names(), ["srv1"]);
    drop(etcd);
}

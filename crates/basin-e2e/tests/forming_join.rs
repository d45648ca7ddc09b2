//! Who is let into a cluster and who is not: each refusal says why and what to do, and
//! nothing has changed on either side.

use basin_api::cluster::Mode;
use basin_api::host::Host;
use basin_api::volume::Volume;
use basin_e2e::images::volume;
use basin_e2e::{Cluster, Server, until};

/// One server of the cluster, and those that want to join it.
struct Door(Cluster);

impl Door {
    fn first(&self) -> &Server {
        &self.0.servers[0]
    }

    fn join(&self, n: usize, url: &str, token: &str, advertise: &str) -> basin_e2e::Cli {
        let join = ["join", url, "--token", token, "--advertise", advertise];
        self.0.servers[n].cli(&join)
    }

    /// The server is refused, in words that hold all of these, and is what it was.
    #[track_caller]
    fn refused_at(&self, n: usize, url: &str, token: &str, words: &[&str]) {
        let (server, address) = (&self.0.servers[n], self.0.address(n).to_string());
        let before = self.first().host_names();
        let said = self.join(n, url, token, &address);
        assert_eq!(said.code, 1, "{}{}", said.stdout, said.stderr);
        for word in words {
            assert!(said.stderr.contains(word), "'{word}' is not in: {}", said.stderr);
        }
        assert!(said.stderr.contains("→"), "no advice: {}", said.stderr);
        assert_eq!(server.mode(), Some(Mode::Single));
        assert!(!server.place.state_dir().join("cluster").exists());
        assert_eq!(self.first().host_names(), before);
    }

    #[track_caller]
    fn refused(&self, n: usize, token: &str, words: &[&str]) {
        self.refused_at(n, &self.0.url(0), token, words);
    }
}

/// With other letters at the end of a part, as one that was guessed.
fn forged(token: &str, part: usize) -> String {
    let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
    let turned = |c: char| if c == '0' { '1' } else { '0' };
    parts[part] = parts[part].chars().map(turned).collect();
    parts.join(".")
}

#[test]
fn a_server_without_a_good_token_or_clock_stays_out() {
    let cluster = Cluster::start_with(3, |n, setup| {
        let setup = setup.arg("--engine=fake");
        if n == 1 { setup.clock() } else { setup }
    });
    cluster.init();
    let door = Door(cluster);
    let good = door.first().join_token(&[]);

    door.refused(1, "hello", &["not a join token", "basin token create --join"]);
    door.refused(1, &good[..good.len() - 1], &["copy it whole"]);
    door.refused(1, &forged(&good, 2), &["not one of this cluster's"]);
    door.refused(1, &forged(&good, 3), &["certificate authority of the join token"]);
    let expired = door.first().join_token(&["--expires-in", "1s"]);
    std::thread::sleep(std::time::Duration::from_secs(2));
    door.refused(1, &expired, &["has expired on", "Make another one"]);

    // Nobody there; and one that is in no cluster.
    door.refused_at(1, "https://10.99.0.77:7443", &good, &["10.99.0.77:7443", "cannot be reached"]);
    let alone = door.0.url(2);
    door.refused_at(1, &alone, &good, &["certificate authority of the join token"]);
    let elsewhere = door.join(1, &door.0.url(0), &good, "10.99.0.55");
    assert!(elsewhere.stderr.contains("not an address of this server"), "{}", elsewhere.stderr);

    door.0.servers[1].set_clock(3600);
    door.refused(1, &good, &["its clock shows", "s apart", "Set the clock"]);
    door.0.servers[1].set_clock(-3600);
    door.refused(1, &good, &["is not good yet", "the clock here says", "timedatectl"]);
    door.0.servers[1].set_clock(0);

    // Nothing of all that has used the token up; one use does.
    let address = door.0.address(1).to_string();
    door.join(1, &door.0.url(0), &good, &address).ok();
    until("both know both", || door.first().host_names() == ["srv1", "srv2"]);
    door.refused(2, &good, &["has let in server 'srv2' already", "Make another one"]);
    let again = door.join(1, &door.0.url(0), &good, &address);
    assert!(again.stderr.contains("one of a cluster already"), "{}", again.stderr);
}

#[test]
fn a_server_that_does_not_fit_stays_out_and_one_that_is_older_comes_in() {
    let cluster = Cluster::start_with(4, |n, setup| match n {
        3 => setup.arg("--engine=fake-older"),
        _ => setup.arg("--engine=fake"),
    });
    cluster.init();
    let door = Door(cluster);
    let first = door.first();

    let twin = &door.0.servers[1];
    twin.cli(&["host", "rename", "srv2", "srv1"]).ok();
    door.refused(1, &first.join_token(&[]), &["a server 'srv1' already", "--name"]);

    let laden = &door.0.servers[2];
    laden.done(laden.client().create::<Volume>(&volume("kept", None)));
    door.refused(2, &first.join_token(&[]), &["it has 1 volume,", "basin init"]);
    assert_eq!(laden.ok(laden.client().list::<Volume>()).items.len(), 1);

    // An older QEMU on an older CPU costs the others something, and that is said.
    let address = door.0.address(3).to_string();
    door.join(3, &door.0.url(0), &first.join_token(&[]), &address).ok();
    let said = |server: &Server| {
        let host = server.ok(server.client().get::<Host>("srv4"));
        let conditions = host.status.map(|s| s.conditions).unwrap_or_default();
        conditions.into_iter().find(|c| c.subject == "cpu-baseline")
    };
    for server in [first, &door.0.servers[3]] {
        until("what it costs is told", || said(server).is_some());
        let told = said(server).expect("a condition");
        assert!(told.detail.contains("sse4.2"), "{}", told.detail);
        assert!(!told.advice.is_empty());
        let shown = server.cli(&["host", "show", "srv4"]).ok();
        assert!(shown.contains("sse4.2"), "{shown}");
    }
    assert_eq!(first.host_names(), ["srv1", "srv4"]);
}

#[test]
fn a_daemon_that_dies_while_it_joins_is_out_or_in_and_joins_with_the_same_token() {
    // Where it dies, and whether it is let in by then.
    let places = [
        ("join/answer/after", Mode::Single),
        ("join/intent/after", Mode::Cluster),
        ("cluster/enter/before", Mode::Cluster),
        ("cluster/enter/after", Mode::Cluster),
    ];
    let set_up = |n: usize, setup: basin_e2e::Setup| {
        let setup = setup.arg("--engine=fake");
        if n == 0 { setup } else { setup.env(FAULT, places[n - 1].0) }
    };
    let cluster = Cluster::start_with(places.len() + 1, set_up);
    cluster.init();
    for (n, (place, expect)) in (1..).zip(places) {
        let (server, token) = (&cluster.servers[n], cluster.servers[0].join_token(&[]));
        let (url, address) = (cluster.url(0), cluster.address(n).to_string());
        let mut join = server.basin(&["join", &url, "--token", &token, "--advertise", &address]);
        let mut join = join.stderr(std::process::Stdio::null()).spawn().expect("run basin");
        server.wait_dead();
        let _ = join.kill();
        join.wait().expect("wait for basin");
        server.set_up(|setup| setup.without_env(FAULT));
        server.boot();
        assert_eq!(server.mode(), Some(expect), "{place}");
        if expect == Mode::Single {
            cluster.try_join(n, &token).ok();
        }
    }
    for server in &cluster.servers {
        until("each server is there, once", || {
            server.host_names() == ["srv1", "srv2", "srv3", "srv4", "srv5"]
        });
    }
    cluster.wait_members(0, 5);
}

const FAULT: &str = "BASIN_FAULT";

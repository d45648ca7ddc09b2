//! Certificates that are good for a minute: they are replaced while everything goes on,
//! expired ones are worth nothing, and servers that slept for too long come back.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use basin_api::host::{Host, HostState};
use basin_api::vm::{Machine, State};
use basin_e2e::{BOOT, Cluster, Server, Setup, eventually, until};

const LIFE: Duration = Duration::from_secs(60);
const API: u16 = 7443;
const ETCD: [u16; 2] = [2379, 2380];

fn form(servers: usize, set_up: impl Fn(usize, Setup) -> Setup) -> Cluster {
    let cluster = Cluster::start_with(servers, set_up);
    let address = cluster.address(0).to_string();
    let life = format!("{}s", LIFE.as_secs());
    let first = &cluster.servers[0];
    first.cli(&["init", "--advertise", &address, "--certificate-life", &life]).ok();
    for n in 1..servers {
        cluster.join(n);
    }
    cluster.wait_members(0, 3);
    let seen = first.ok(first.client().cluster());
    assert_eq!(seen.certificate_life_seconds, Some(LIFE.as_secs()));
    cluster
}

fn tls(server: &Server, file: &str) -> PathBuf {
    server.place.state_dir().join("cluster/tls").join(file)
}

/// Its certificate and key of now.
fn own(server: &Server) -> String {
    std::fs::read_to_string(tls(server, "server.pem")).expect("its certificate")
}

/// A copy of those, to show them later.
fn copy(server: &Server) -> PathBuf {
    let to = server.place.dir.join("old.pem");
    std::fs::write(&to, own(server)).expect("copy the certificate");
    to
}

/// Waits until what all of these have now is expired, doing something again and again.
fn until_expired(servers: &[&Server], mut meanwhile: impl FnMut()) {
    let made = |s: &&Server| tls(s, "server.pem").metadata().and_then(|m| m.modified());
    let last = servers.iter().map(|s| made(s).expect("when it was made")).max();
    let end = last.expect("a server") + LIFE + Duration::from_secs(2);
    while SystemTime::now() < end {
        meanwhile();
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// What a service answers to who shows this; its own certificate is in it.
fn show(to: &Server, address: &str, port: u16, pem: &std::path::Path) -> Result<String, String> {
    let path = ["internal/v1/leads", "health", "version"][usize::from(port != API)];
    let path = if port == ETCD[1] { "version" } else { path };
    let ca = tls(to, "ca.pem");
    let mut curl = to.place.command("curl");
    curl.args(["-sS", "-m20", "--http1.1", "-w", "%{certs}", "--cacert"]).arg(ca);
    curl.arg("--cert").arg(pem).arg("--key").arg(pem);
    let out = curl.arg(format!("https://{address}:{port}/{path}")).output().expect("run curl");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stderr)) }
}

/// The text of the first certificate, on one line.
fn first_certificate(text: &str) -> String {
    let from = text.find("-----BEGIN CERTIFICATE-----").expect("a certificate");
    let end = text[from..].find("-----END").expect("its end") + from;
    text[from..end].split_whitespace().collect()
}

/// All of its services show the certificate that it has now, and take it.
fn serves_what_it_has(cluster: &Cluster, n: usize, ports: &[u16]) {
    let (server, address) = (&cluster.servers[n], cluster.address(n).to_string());
    for &port in ports {
        until(&format!("port {port} shows the certificate of now"), || {
            let now = own(server);
            match show(server, &address, port, &tls(server, "server.pem")) {
                Ok(said) => first_certificate(&said) == first_certificate(&now),
                Err(why) => {
                    println!("port {port}: {why}");
                    false
                }
            }
        });
    }
}

/// A change, asked of this server.
fn label(server: &Server, value: &str) {
    server.cli(&["host", "label", "srv1", &format!("last={value}")]).ok();
}

fn ready(asked: &Server, name: &str) {
    until(&format!("{name} is ready"), || {
        asked.call(asked.client().get::<Host>(name)).is_ok_and(|h| h.state == HostState::Ready)
    });
}

const REPLACED: &str = "an expired certificate was replaced";

#[test]
fn certificates_are_replaced_while_everything_goes_on() {
    let cluster = form(4, |_, setup| setup);
    let members = cluster.servers[0].members();
    let name = |n: usize| format!("srv{}", n + 1);
    let (keep, other): (Vec<_>, Vec<_>) = (1..4).partition(|&n| members.contains(&name(n)));
    let (&[through, late], &[other]) = (&keep[..], &other[..]) else { panic!("{members:?}") };
    let [one, two] = [0, through].map(|n| &cluster.servers[n]);
    until("who keeps the state has the CA's key", || tls(two, "authority.json").exists());
    assert!(!tls(&cluster.servers[other], "authority.json").exists());

    // One that keeps the state and one that does not sleep for too long.
    let sleepers = [late, other].map(|n| &cluster.servers[n]);
    sleepers.iter().for_each(|s| s.stop());
    for n in [late, other] {
        until("it is known to sleep", || {
            let host = one.call(one.client().get::<Host>(&name(n)));
            host.is_ok_and(|h| h.state == HostState::Unreachable)
        });
    }
    let guest = one.create(&one.micro("run", Machine::Q35));
    guest.start();
    guest.shell();
    let on = guest.vm().status.host.and_then(|h| h.name).expect("where it runs");
    let away = if on == "srv1" { two } else { one };
    let mut console = away.guest("run").console();
    console.run("echo here >/tmp/mark");
    let mut events = two.ok(two.client().events(&["host"], None));

    let old = [copy(one), copy(two)];
    let mut n = 0;
    until_expired(&[one, two, sleepers[0], sleepers[1]], || {
        n += 1;
        label([one, two][n % 2], &format!("n{n}"));
    });
    assert!(n > 10, "changes were made all the time: {n}");
    for (server, old) in [one, two].into_iter().zip(&old) {
        let was = std::fs::read_to_string(old).expect("the copy");
        assert_ne!(first_certificate(&own(server)), first_certificate(&was));
    }
    serves_what_it_has(&cluster, 0, &[API, ETCD[0], ETCD[1]]);
    serves_what_it_has(&cluster, through, &[API, ETCD[0], ETCD[1]]);
    // Nobody takes what is over, and everybody what is not.
    let (address, at) = (cluster.address(0).to_string(), tls(two, "server.pem"));
    for port in [API, ETCD[0], ETCD[1]] {
        eventually("the certificate of now is taken", BOOT, || show(two, &address, port, &at).ok());
        for old in &old {
            let refused = show(two, &address, port, old).expect_err("it has expired");
            assert!(refused.contains("alert"), "port {port}: {refused}");
        }
    }

    for n in [late, other] {
        let server = &cluster.servers[n];
        server.boot();
        assert!(server.log().contains(REPLACED));
        ready(two, &name(n));
        label(server, &format!("back{n}"));
    }
    serves_what_it_has(&cluster, late, &[API, ETCD[0], ETCD[1]]);
    serves_what_it_has(&cluster, other, &[API]);
    assert!(!one.log().contains(REPLACED) && !two.log().contains(REPLACED));

    // What was open from the beginning still is, and nothing was started anew.
    assert_eq!(console.run("cat /tmp/mark"), "here");
    assert_eq!(guest.state(), State::Running);
    assert_eq!(guest.log().matches("micro: up").count(), 1);
    let wanted = format!("back{other}");
    eventually("the last change is heard", BOOT, || {
        let next = two.call(async { tokio::time::timeout(BOOT, events.next()).await });
        let next = next.expect("an event in time").expect("the stream goes on");
        format!("{next:?}").contains(&wanted).then_some(())
    });
    let mut members_now = one.members();
    let mut members = members;
    members.sort();
    members_now.sort();
    assert_eq!(members_now, members);
}

/// Nobody is left whom anybody would let in.
#[test]
fn all_servers_come_back_after_their_certificates_have_expired() {
    let cluster = form(3, |_, setup| setup.arg("--engine=fake"));
    for server in &cluster.servers {
        until("it has the CA's key", || tls(server, "authority.json").exists());
    }
    cluster.servers[2].cli(&["host", "label", "srv2", "kept=yes"]).ok();
    cluster.servers.iter().for_each(Server::die);
    until_expired(&cluster.servers.iter().collect::<Vec<_>>(), || {});
    // One by one, in any order: who is first waits for a second.
    std::thread::scope(|scope| {
        for server in &cluster.servers {
            scope.spawn(|| server.revive());
        }
    });
    for (n, server) in cluster.servers.iter().enumerate() {
        assert!(server.log().contains(REPLACED), "{}", server.log());
        ready(&cluster.servers[0], &format!("srv{}", n + 1));
        label(server, &format!("after{n}"));
    }
    let host = cluster.servers[0].ok(cluster.servers[0].client().get::<Host>("srv2"));
    assert!(host.meta.labels.contains_key("kept"));
    cluster.wait_members(0, 3);
    for n in 0..3 {
        serves_what_it_has(&cluster, n, &[API, ETCD[0], ETCD[1]]);
    }
}

#[test]
fn a_life_that_makes_no_sense_is_refused() {
    let cluster = Cluster::start(1);
    let address = cluster.address(0).to_string();
    for life in ["59s", "3651d"] {
        let init = ["init", "--advertise", &address, "--certificate-life", life];
        let said = cluster.servers[0].cli(&init);
        assert!(said.code == 1 && said.stderr.contains("a minute to ten years"), "{said:?}");
    }
    assert!(!cluster.servers[0].place.state_dir().join("cluster").exists());
}

//! The harness of many servers: what it says it does to them, it does. Daemons are real
//! and each for itself.

use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use basin_api::client::ClientError;
use basin_api::reference::Labels;
use basin_api::volume::{Volume, VolumeCreate, VolumeSource};
use basin_e2e::observe::{Pinger, Transfer};
use basin_e2e::{Cluster, GATEWAY, Server, Setup, Slow, free, process, until};

const PATIENCE: Duration = Duration::from_secs(2);

/// One that reaches it in the end does; one that cannot is not reached for a while.
fn reaches(cluster: &Cluster, from: usize, to: usize) -> bool {
    let address = cluster.address(to).to_string();
    let ping = ["-n", "-q", "-c1", "-W1", &address];
    cluster.servers[from].place.command("ping").args(ping).output().unwrap().status.success()
}

fn all_reach(cluster: &Cluster) {
    for from in 0..cluster.servers.len() {
        for to in 0..cluster.servers.len() {
            until(&format!("{from} reaches {to}"), || reaches(cluster, from, to));
        }
    }
}

/// Whether a datagram that `from` sends arrives at `to`.
fn hears(cluster: &Cluster, from: usize, to: usize) -> bool {
    let bind = |n: usize| {
        cluster.servers[n].in_network(|_| UdpSocket::bind((cluster.address(n), 0)).unwrap())
    };
    let (sender, hearer) = (bind(from), bind(to));
    hearer.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let address = hearer.local_addr().unwrap();
    // The first ones may wait for the address of the other, and be dropped for it.
    (0..5).any(|_| {
        sender.send_to(b"hello", address).unwrap();
        hearer.recv(&mut [0; 16]).is_ok()
    })
}

/// Whether the API of one server answers on another; its certificate is its own.
fn api_answers(cluster: &Cluster, from: usize, to: usize) -> bool {
    let address = (IpAddr::from(cluster.address(to)), 7443).into();
    cluster.servers[from].in_network(|_| TcpStream::connect_timeout(&address, PATIENCE).is_ok())
}

fn name(server: &Server) -> String {
    server.ok(server.client().version()).host
}

#[test]
fn servers_reach_each_other_until_they_are_parted() {
    let cluster = Cluster::start(3);
    all_reach(&cluster);
    assert_eq!(cluster.servers.iter().map(name).collect::<Vec<_>>(), ["srv1", "srv2", "srv3"]);
    assert!(api_answers(&cluster, 0, 2));
    // A way out, too.
    let out = cluster.servers[1].sh(&format!("ping -n -c1 -W5 {GATEWAY}"));
    assert!(out.contains("1 received"), "{out}");

    cluster.partition(&[&[0, 1], &[2]]);
    assert!(reaches(&cluster, 0, 1) && reaches(&cluster, 1, 0));
    assert!(!reaches(&cluster, 0, 2) && !reaches(&cluster, 2, 1) && !api_answers(&cluster, 0, 2));
    cluster.partition(&[]);
    assert!(!reaches(&cluster, 0, 1) && !reaches(&cluster, 1, 0));
    cluster.heal();
    all_reach(&cluster);

    cluster.drop_one_way(0, 1);
    assert!(!hears(&cluster, 0, 1));
    assert!(hears(&cluster, 1, 0) && hears(&cluster, 0, 2) && hears(&cluster, 2, 1));
    cluster.heal();

    cluster.drop_ports(0, 1, &[7443, 2379]);
    assert!(!api_answers(&cluster, 1, 0));
    assert!(reaches(&cluster, 1, 0) && api_answers(&cluster, 0, 1) && api_answers(&cluster, 2, 0));
    cluster.heal();
    assert!(api_answers(&cluster, 1, 0));

    cluster.cut_off(2);
    let carrier = || cluster.servers[2].sh("ip link show up0");
    until("there is no carrier", || carrier().contains("NO-CARRIER"));
    assert!(!reaches(&cluster, 0, 2) && reaches(&cluster, 0, 1));
    cluster.reconnect(2);
    all_reach(&cluster);
}

#[test]
fn a_slow_cable_delays_and_loses() {
    let cluster = Cluster::prepare(2, |_, setup| setup);
    all_reach(&cluster);
    let round_trip = || {
        let to = cluster.address(1);
        let out = cluster.servers[0].sh(&format!("ping -n -q -c3 -i0.1 -W5 {to}"));
        let min = out.split("= ").nth(1).and_then(|t| t.split('/').next()?.parse::<f64>().ok());
        min.unwrap_or_else(|| panic!("{out}"))
    };
    let delay = Duration::from_millis(80);
    cluster.slow(1, Slow { delay, ..Slow::default() });
    assert!(round_trip() >= 160.0);

    // A transfer over it arrives whole, and no faster than the wire lets it.
    let rate = Slow { bits_per_second: Some(16_000_000), ..Slow::default() };
    cluster.slow(1, rate);
    let listener =
        cluster.servers[1].in_network(|_| TcpListener::bind((cluster.address(1), 0)).unwrap());
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let _ = std::io::copy(&mut &stream, &mut &stream);
    });
    let start = Instant::now();
    let transfer = cluster.servers[0].in_network(|_| Transfer::start(address, Duration::ZERO));
    until("a megabyte has passed", || transfer.so_far().blocks >= 256);
    assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
    transfer.finish().unwrap();

    cluster.slow(1, Slow { loss_percent: 100, ..Slow::default() });
    assert!(!reaches(&cluster, 0, 1));
    cluster.slow(1, Slow { loss_percent: 40, ..Slow::default() });
    let ping = Pinger::start(&cluster.servers[0].place, cluster.address(1).into());
    std::thread::sleep(Duration::from_secs(3));
    let (some, _) = ping.stop();
    // Both ways: about a third is answered.
    assert!(some > 0 && some < 240, "{some} of 300 were answered");
    cluster.fast(1);
    all_reach(&cluster);
}

#[test]
fn a_server_freezes_dies_and_comes_back() {
    let cluster = Cluster::start(2);
    let [one, two] = &cluster.servers[..] else { unreachable!() };
    let everything = || two.place.everything();
    let blockd = two.blockd_pid();
    assert!(everything().contains(&blockd) && everything().contains(&two.pid()));

    two.freeze_all();
    until("all of it stands still", || everything().into_iter().all(process::stopped));
    // Its kernel lives.
    assert!(reaches(&cluster, 0, 1) && !process::stopped(one.pid()));
    two.thaw_all();
    assert_eq!(name(two), "srv2");

    two.freeze();
    until("the daemon stands still", || process::stopped(two.pid()));
    assert!(!process::stopped(blockd));
    two.thaw();

    two.die();
    assert!(everything().is_empty() && !process::alive(blockd));
    // The kernel takes its network away when it gets to it.
    until("a dead machine answers nothing", || !reaches(&cluster, 0, 1));
    assert!(matches!(one.call(two.client().version()), Err(ClientError::Unreachable { .. })));
    two.revive();
    all_reach(&cluster);
    assert_eq!(name(two), "srv2");
    assert_eq!(name(one), "srv1");
}

#[test]
fn storage_is_shared_or_each_servers_own() {
    let mut cluster = Cluster::prepare(2, |_, setup| setup);
    let (shared, local) = (cluster.shared(), cluster.local());
    cluster.servers[0].sh(&format!(
        "echo all >{}/a; echo one >{}/b",
        shared.display(),
        local.display()
    ));
    let third = cluster.add(|setup| setup);
    let ls =
        |n: usize, dir: &std::path::Path| cluster.servers[n].sh(&format!("ls {}", dir.display()));
    assert_eq!([ls(1, &shared), ls(third, &shared)], ["a\n", "a\n"]);
    assert_eq!([ls(0, &local), ls(1, &local)], ["b\n", ""]);
    cluster.unmount_shared(1);
    assert_eq!([ls(0, &shared), ls(1, &shared)], ["a\n", ""]);
    cluster.remount_shared(1);
    assert_eq!(ls(1, &shared), "a\n");
}

#[test]
fn a_disk_can_be_full_and_a_clock_wrong() {
    let server = Setup::new().state_disk(256 << 20).clock().start();
    let state = server.place.state_dir();
    assert!(free(&state) < 256 << 20);
    server.fill_disk();
    let write = || std::fs::write(state.join("more"), [1; 1 << 20]);
    assert_eq!(write().unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    server.empty_disk();
    write().unwrap();

    // What it makes is a day in the future; its daemon has not been restarted.
    let made = |name: &str| {
        server.done(server.client().create::<Volume>(&volume(name)));
        let made = server.ok(server.client().get::<Volume>(name)).meta.created_at;
        let seconds = server.sh(&format!("echo $(($(date -d {made} +%s) - $(date +%s)))"));
        seconds.trim().parse::<i64>().unwrap()
    };
    const DAY: i64 = 24 * 3600;
    server.set_clock(DAY);
    assert!((DAY - 3600..DAY + 60).contains(&made("ahead")));
    server.set_clock(-DAY);
    assert!((-DAY - 3600..-DAY + 60).contains(&made("behind")));
}

fn volume(name: &str) -> VolumeCreate {
    VolumeCreate {
        name: name.to_owned(),
        description: String::new(),
        labels: Labels::new(),
        source: VolumeSource::Blank { size_bytes: 1 << 20 },
        format: None,
        datastore: None,
    }
}

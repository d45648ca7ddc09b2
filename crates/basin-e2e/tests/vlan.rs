//! A network that is a VLAN of the operator's own: guests on different servers and
//! machines of the physical network are on it, and a guest's connection to such a machine
//! outlives the guest's moves.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use basin_api::host::Host;
use basin_api::vm::{Machine, NewNic, Vm, VmCreate};
use basin_e2e::{BOOT, Cluster, Guest, Physical, eventually, until};

const OFFICE: u16 = 100;
const LAB: u16 = 200;

fn on(guest: &Guest<'_>) -> String {
    guest.vm().status.host.and_then(|h| h.name).unwrap_or_default()
}

/// Sends back what it gets, on every connection to the physical machine.
fn answer(physical: &Physical) {
    let listener = physical.enter(|| TcpListener::bind("10.20.0.1:7")).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let _ = stream.set_nodelay(true);
                let (mut from, mut to) = (stream.try_clone().unwrap(), stream);
                let _ = std::io::copy(&mut from, &mut to);
            });
        }
    });
}

/// A connection from the physical machine to a guest's echo server.
fn call(physical: &Physical, address: &str) {
    let to = format!("{address}:7");
    let mut stream = physical.enter(|| {
        eventually("the guest answers the physical machine", BOOT, || TcpStream::connect(&to).ok())
    });
    stream.write_all(b"hello").unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"hello");
}

#[test]
fn guests_of_a_vlan_keep_their_connections_to_the_physical_network() {
    let cluster = Cluster::start(2);
    cluster.form();
    let physical = Physical::new();
    physical.vlan(OFFICE, "10.20.0.1/24");
    physical.vlan(LAB, "10.30.0.1/24");
    answer(&physical);
    let first = &cluster.servers[0];
    for (n, server) in cluster.servers.iter().enumerate() {
        physical.connect(server, n, &[OFFICE, LAB]);
    }
    let hosts = || first.ok(first.client().list::<Host>()).items;
    until("both servers are ready", || {
        hosts().len() == 2 && hosts().iter().all(|h| h.status.is_some())
    });
    let create = ["network", "create", "office", "--vlan", "100", "--gateway", "10.20.0.1"];
    let range = ["--subnet", "10.20.0.0/24", "--range", "10.20.0.100-10.20.0.109"];
    first.cli(&[&create[..], &range].concat()).ok();
    let lab = "network create lab --vlan 200 --subnet 10.30.0.0/24 --gateway 10.30.0.1";
    first.cli(&lab.split(' ').collect::<Vec<_>>()).ok();
    let on_network = |name: &str, network: &str| {
        let nic = NewNic { network: network.to_owned(), mac: None, address: None };
        VmCreate { nics: Some(vec![nic]), ..first.micro(name, Machine::Q35) }
    };

    // Nobody has it; then one server does, and a guest runs there and nowhere else.
    let refused = first.refused(first.client().create::<Vm>(&on_network("a", "office")));
    assert!(refused.detail.contains("it has no trunk"), "{refused:?}");
    let set_trunks = |server: &str| {
        for trunk in physical.trunks(&[OFFICE, LAB]) {
            let mut args = vec!["host", "set-trunk", server];
            args.extend(trunk.iter().map(String::as_str));
            first.cli(&args).ok();
        }
        until("the server has looked at its trunks", || {
            let found = hosts().into_iter().find(|h| h.meta.name == server);
            found.is_some_and(|h| {
                !h.trunks.is_empty() && h.trunks.iter().all(|t| t.mtu == Some(1500))
            })
        });
    };
    set_trunks("srv1");
    let a = first.create(&on_network("a", "office"));
    a.start();
    assert_eq!(on(&a), "srv1");
    let refused = first.cli(&["vm", "migrate", "a", "--to", "srv2"]);
    assert!(refused.code != 0 && refused.stderr.contains("no trunk"), "{}", refused.stderr);
    set_trunks("srv2");
    let b = first.create(&on_network("b", "office"));
    b.start();
    assert_eq!(on(&b), "srv2", "the emptier server takes the next one");
    let mac = |guest: &Guest<'_>| guest.vm().nics[0].mac.clone();
    let heard = physical.count(OFFICE, &mac(&a));
    let unheard = [physical.count(LAB, &mac(&a)), physical.count(LAB, &mac(&b))];
    let c = first.create(&on_network("c", "lab"));
    c.start();

    // One another by address and by name, and the physical machine, both ways.
    let mut console = a.online();
    b.wait_log("micro: address", 1);
    assert_eq!((a.address(), b.address()), ("10.20.0.100".into(), "10.20.0.101".into()));
    for (what, address) in [("b", b.address()), ("the router", "10.20.0.1".into())] {
        let ping = format!("until ping -c1 -W1 {address} > /dev/null; do :; done; echo reached");
        assert!(console.run(&ping).contains("reached"), "{what}");
    }
    let said = console.run("ping -c1 -W5 b");
    assert!(said.contains(&b.address()), "{said}");
    call(&physical, &a.address());
    call(&physical, &b.address());
    // Its own server serves it; and that is seen nowhere else.
    let service = console.run("ping -c1 -W5 10.20.0.254");
    assert!(service.contains("1 packets received"), "{service}");
    let asked = physical.enter(|| {
        let socket = UdpSocket::bind("10.20.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        // A question for any name: of a server's own DNS there would be an answer.
        let mut question = vec![0xba, 0x51, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        question.extend(b"\x01b\x06office\x08internal\x00\x00\x01\x00\x01");
        let sent = socket.send_to(&question, "10.20.0.254:53");
        sent.and_then(|_| socket.recv(&mut [0; 512]))
    });
    assert!(asked.is_err(), "the service address answers outside");

    // A connection to the physical machine outlives the guest's moves.
    console.send("guest-tool tcp-count to=10.20.0.1:7 every=20 &");
    console.expect("tcp-count: 20 ");
    for to in ["srv2", "srv1"] {
        first.cli(&["vm", "migrate", "a", "--to", to]).ok();
        let vm: Vm = first.ok(first.client().get("a"));
        assert_eq!(vm.status.host.and_then(|h| h.name).as_deref(), Some(to));
        a.wait_answers();
        call(&physical, &a.address());
    }
    assert!(heard.frames() > 0);
    assert_eq!(unheard.each_ref().map(|count| count.frames()), [0, 0], "another VLAN hears it");

    // A trunk that guests need stays; and afterwards interfaces are as they were.
    let untagged: Vec<String> = physical.trunks(&[OFFICE]).concat().split_off(1);
    let mut unset = vec!["host", "unset-trunk", "srv1"];
    unset.extend(untagged.iter().map(String::as_str));
    let refused = first.cli(&unset);
    assert!(refused.stderr.contains("vm 'a'"), "{}", refused.stderr);
    for guest in [&a, &b, &c] {
        guest.delete(true);
    }
    for network in ["office", "lab"] {
        first.cli(&["network", "delete", network]).ok();
    }
    first.cli(&unset).ok();
    for server in &cluster.servers {
        let look = format!(
            "ip -o link show {} | grep -o 'master .*'; ip -o link | grep -o 'bl[a-z0-9]*-.*'; \
             ip rule | grep 47697; true",
            physical.interface(OFFICE)
        );
        let mut before = String::new();
        until("nothing of the VLANs is left", || {
            let left = server.sh(&look);
            if left != before {
                eprintln!("{} has {left}", server.place.name);
                before.clone_from(&left);
            }
            left.is_empty()
        });
    }
}

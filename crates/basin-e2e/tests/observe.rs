//! What is seen of a guest from outside is what happened to it.

use std::net::{IpAddr, TcpListener};
use std::time::Duration;

use basin_api::client::VmAction;
use basin_api::vm::Machine;
use basin_e2e::images::add_kernel_words;
use basin_e2e::observe::{Collector, Pinger, Transfer};
use basin_e2e::{Setup, until};

/// Longer than a busy machine keeps a guest from running.
const PAUSE: Duration = Duration::from_secs(10);

#[test]
fn a_pause_is_a_gap_and_a_restart_another_incarnation() {
    let server = Setup::new().outside().start();
    let outside = server.outside();
    let any_port = || format!("{}:0", outside.address()).parse::<std::net::SocketAddr>().unwrap();
    let collector = outside.enter(|| Collector::bind(any_port()));
    let echo = outside.enter(|| TcpListener::bind(any_port()).unwrap());
    let echo_address = echo.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in echo.incoming().map_while(Result::ok) {
            std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });

    let mut vm = server.micro("beat", Machine::Q35);
    add_kernel_words(&mut vm, &format!("micro.run=heartbeat,to={}", collector.address));
    let guest = server.create(&vm);
    guest.start();
    let mut console = guest.online();
    collector.wait_more(100);
    console.send(&format!("guest-tool tcp-count to={echo_address} every=10 &"));
    console.expect("tcp-count: 10 ");
    let address: IpAddr = guest.address().parse().unwrap();
    let ping = Pinger::start(&server.place, address);
    let pause = Duration::from_millis(5);
    let transfer = server.in_network(|_| Transfer::start((address, 7), pause));
    until("blocks come back", || transfer.so_far().blocks > 10);
    collector.forget();
    transfer.forget();

    guest.act(VmAction::Pause);
    std::thread::sleep(PAUSE);
    guest.act(VmAction::Resume);
    collector.wait_more(100);
    let report = collector.report();
    assert!(report.longest_silence >= PAUSE, "{report:?}");
    assert_eq!((report.lost, report.duplicated), (0, 0), "it did not run meanwhile");
    assert_eq!((report.incarnations.len(), &report.ran_twice), (1, &None));
    // Connections outlive it, with all that was on them.
    let blocks = transfer.so_far().blocks;
    until("blocks come back again", || transfer.so_far().blocks > blocks + 10);
    let transferred = transfer.finish().unwrap();
    assert!(transferred.longest_gap >= PAUSE, "{transferred:?}");
    let (answered, longest) = ping.stop();
    assert!(answered > 100 && longest >= PAUSE, "{answered} pings, {longest:?}");
    console.read();
    console.expect("longest ");
    assert!(!guest.log().contains("FAILED"), "{}", guest.log());

    // Killed, it is silent, and what comes then is another.
    let killed = guest.kill_qemu();
    guest.wait_new_qemu(killed);
    until("the new one is heard", || collector.report().incarnations.len() == 2);
    let report = collector.report();
    assert_eq!(report.ran_twice, None);
}

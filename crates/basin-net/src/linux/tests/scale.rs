//! What a change costs among thousands of interfaces; prints with `--nocapture`.

use std::time::Instant;

use basin_model::MacAddr;

use super::servers::*;
use crate::fabric::Lease;

const LEASES: u32 = 5_000;

#[test]
fn a_change_among_thousands() {
    in_cluster("linux::tests::scale::a_change_among_thousands", |servers| {
        let [a, b, c] = &servers;
        let mut net = spanning(1, &[a, b, c]);
        net.subnet = "10.64.0.0/16".parse().unwrap();
        net.gateway = "10.64.0.1".parse().unwrap();
        for n in 0..LEASES {
            let [_, _, high, low] = (n + 2).to_be_bytes();
            net.leases.push(Lease {
                mac: MacAddr([0x52, 0x54, 0, 9, high, low]),
                address: [10, 64, high, low].into(),
                name: format!("machine-{n}"),
                at: Some([a, b, c][n as usize % 3].address),
                to: None,
            });
        }
        let note = |what: &str, since: Instant| {
            println!("{what}: {:.1} ms", since.elapsed().as_secs_f64() * 1e3);
        };
        let sync = |what: &str, net: &_| {
            let seen = [seen_by(a, net)];
            let start = Instant::now();
            a.sync(&seen);
            note(what, start);
        };
        sync("all from nothing", &net);
        sync("nothing to do, rules learned", &net);
        sync("nothing to do", &net);
        let mac = net.leases[1].mac;
        place(&mut net, mac, b, Some(c));
        sync("one begins to move elsewhere", &net);
        place(&mut net, mac, c, None);
        sync("one has moved elsewhere", &net);
        let one = net.leases[0].clone();
        let start = Instant::now();
        let machine = a.tap(&net, new_nic(), &one);
        note("a tap", start);
        place(&mut net, one.mac, a, Some(b));
        sync("one begins to leave", &net);
        drop(machine);
        place(&mut net, one.mac, b, None);
        sync("one has left", &net);
        let gone = net.leases.pop().unwrap();
        sync("one is deleted", &net);
        net.leases.push(gone);
        sync("one is made", &net);
        let other = spanning(2, &[a, b, c]);
        let seen = [seen_by(a, &net), seen_by(a, &other)];
        let start = Instant::now();
        a.sync(&seen);
        note("another network is made", start);
        assert_eq!(a.steps_left(&seen), Vec::<String>::new());
        let port = a.overlay(&net);
        let held = a.sh(&format!("bridge fdb show dev {port} | grep -c 52:54:00:09"));
        assert_eq!(held.trim(), (LEASES - LEASES.div_ceil(3) + 1).to_string());
    });
}

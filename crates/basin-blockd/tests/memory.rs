//! What a disk costs.

mod support;

use support::driver::*;
use support::{Daemon, pattern, until};

const DISKS: usize = 40;

/// Without shared memory: the pages of the guests through which I/O went count as
/// resident here too, but they are the guests'.
fn own_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kib = |name: &str| -> u64 {
        let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    kib("RssAnon:") + kib("RssFile:")
}

#[test]
fn a_disk_costs_less_than_half_a_mebibyte() {
    let daemon = Daemon::start();
    let before = own_kib(daemon.pid());
    let mut disks = Vec::new();
    for n in 0..DISKS {
        let export = daemon.raw(&format!("d{n}"), 8 << 20);
        daemon.open(&export);
        let mut guest = Guest::new(2);
        let link = guest.connect(&export.socket);
        for q in 0..2 {
            for slot in 0..u64::from(SLOTS) {
                guest.send(q, WRITE, slot * 128, Data::Out(&pattern(slot, 65536)));
            }
            link.kick(q);
        }
        disks.push((guest, link));
    }
    for (guest, _) in &mut disks {
        until("the answers", || {
            (0..2).for_each(|q| drop(guest.reap(q)));
            (0..2).all(|q| guest.open_requests(q) == 0).then_some(())
        });
    }
    let each = (own_kib(daemon.pid()) - before) / DISKS as u64;
    println!("{before} KiB and {each} KiB a disk");
    assert!(each < 512, "{each} KiB a disk");
}

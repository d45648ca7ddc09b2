//! Guests and front ends that break the rules hurt themselves only.

mod support;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;

use support::driver::*;
use support::{Daemon, pattern, until};

const SIZE: u64 = 4 << 20;

struct Setup {
    daemon: Daemon,
    export: basin_blockd::control::Export,
    guest: Guest,
    link: Link,
    /// A well-behaved guest of the same daemon.
    other: (Guest, Link),
}

fn setup() -> Setup {
    let daemon = Daemon::start();
    let (export, second) = (daemon.raw("bad", SIZE), daemon.raw("good", SIZE));
    daemon.open(&export);
    daemon.open(&second);
    let mut guest = Guest::new(2);
    let link = guest.connect(&export.socket);
    let mut well = Guest::new(2);
    let other = well.connect(&second.socket);
    Setup { daemon, export, guest, link, other: (well, other) }
}

impl Setup {
    fn others_go_on(&mut self) {
        let (guest, link) = &mut self.other;
        assert_eq!(link.write(guest, 0, &pattern(4, 4096)), 0);
        assert_eq!(link.read(guest, 0, 4096).unwrap(), pattern(4, 4096));
    }

    /// The queue was given up, for a reason that the log tells; a reset cures it.
    fn expect_stopped(mut self, why: &str) {
        self.link.kick(0);
        until("the log to tell", || self.daemon.log().contains(why).then_some(()));
        self.others_go_on();
        drop(self.link);
        let mut fresh = Guest::new(2);
        let link = fresh.connect(&self.export.socket);
        assert_eq!(link.flush(&mut fresh), 0);
    }
}

#[test]
fn a_head_outside_of_the_ring() {
    let mut s = setup();
    s.guest.offer(0, RING);
    s.expect_stopped("is outside of a ring");
}

#[test]
fn an_index_that_jumps() {
    let s = setup();
    s.guest.u16_at(Guest::avail_index(0)).store(RING + 1, Ordering::Release);
    s.expect_stopped("jumped from");
}

#[test]
fn a_chain_that_loops() {
    let mut s = setup();
    s.guest.put_descriptor(0, 0, GPA, 16, 1, 1);
    s.guest.put_descriptor(0, 1, GPA, 16, 1, 0);
    s.guest.offer(0, 0);
    s.expect_stopped("a chain of more than");
}

#[test]
fn a_status_byte_outside_of_memory() {
    let mut s = setup();
    s.guest.put_descriptor(0, 0, GPA, 16, 1, 1);
    s.guest.put_descriptor(0, 1, 64, 1, 2, 0);
    s.guest.offer(0, 0);
    s.expect_stopped("outside of the guest");
}

#[test]
fn a_request_without_a_status_byte() {
    let mut s = setup();
    s.guest.put_descriptor(0, 0, GPA, 16, 0, 0);
    s.guest.offer(0, 0);
    s.expect_stopped("without a status byte");
}

#[test]
fn data_outside_of_memory_is_an_error_and_no_more() {
    let mut s = setup();
    let (header, _, status) = Guest::places(0, 0);
    for (addr, len) in [(0, 512), (GPA - 256, 512), (u64::MAX - 511, 512), (GPA + (64 << 20), 4096)]
    {
        let mut h = WRITE.to_le_bytes().to_vec();
        h.extend([0; 12]);
        s.guest.put(header, &h);
        s.guest.put(status, &[0xee]);
        s.guest.put_descriptor(0, 0, GPA + header, 16, 1, 1);
        s.guest.put_descriptor(0, 1, addr, len, 1, 2);
        s.guest.put_descriptor(0, 2, GPA + status, 1, 2, 0);
        s.guest.offer(0, 0);
        s.link.kick(0);
        until("the answer", || (s.guest.answers_waiting(0) == 1).then_some(()));
        s.guest.reap(0);
        assert_eq!(s.guest.bytes(status, 1), [1], "{addr:#x}");
    }
    assert_eq!(s.link.flush(&mut s.guest), 0);
    s.others_go_on();
}

#[test]
fn messages_that_make_no_sense_end_the_connection() {
    let mut s = setup();
    drop(s.link);
    for bytes in [
        vec![0xff; 64],
        [9999u32, 1, 0].iter().flat_map(|w| w.to_ne_bytes()).collect(),
        // Set the memory table, 4 GiB of it, without descriptors.
        [5u32, 1, u32::MAX].iter().flat_map(|w| w.to_ne_bytes()).collect(),
        // A queue number out of this world.
        [8u32, 1, 8, 4_000_000_000, 64].iter().flat_map(|w| w.to_ne_bytes()).collect(),
        // The back end's channel without a channel.
        [21u32, 1, 0].iter().flat_map(|w| w.to_ne_bytes()).collect(),
        vec![1, 0],
    ] {
        let mut stream = UnixStream::connect(&s.export.socket).unwrap();
        stream.write_all(&bytes).unwrap();
        drop(stream);
        let (guest, link) = &mut s.other;
        assert_eq!(link.flush(guest), 0);
    }
    let link = s.guest.connect(&s.export.socket);
    assert_eq!(link.flush(&mut s.guest), 0);
}

#[test]
fn a_storm_of_kicks_and_resets_starves_nobody() {
    let mut s = setup();
    for _ in 0..20 {
        for _ in 0..500 {
            s.link.kick(0);
        }
        drop(s.link);
        s.guest = Guest::new(2);
        s.link = s.guest.connect(&s.export.socket);
        s.others_go_on();
    }
}

#[test]
fn a_front_end_that_stalls_halfway_can_be_cut_off() {
    let s = setup();
    drop(s.link);
    let mut stream = UnixStream::connect(&s.export.socket).unwrap();
    // A header that promises a body.
    let header: Vec<u8> = [8u32, 1, 8].iter().flat_map(|w| w.to_ne_bytes()).collect();
    stream.write_all(&header).unwrap();
    until("the connection", || s.daemon.state(&s.export).filter(|e| e.connected));
    s.daemon.close(&s.export);
    assert!(s.daemon.state(&s.export).is_none());
}

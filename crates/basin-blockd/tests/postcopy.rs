//! A guest whose memory arrives while its disk is in use already: what is not there is
//! waited for, by nobody else, and by nobody for ever.

mod support;

use std::collections::BTreeSet;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use support::driver::*;
use support::{Daemon, pattern, until};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

const SIZE: u64 = 4 << 20;
const PAGE: u64 = 4096;
const UFFDIO_WAKE: libc::Ioctl = 0x8010_aa02_u32 as libc::Ioctl;

/// A process that handles faults has one guest: so these take turns.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The side that has the pages, and the front end's part in fetching them.
struct Source {
    pages: Vec<u8>,
    memory: std::fs::File,
    /// Where blockd has the memory.
    base: u64,
    faults: std::fs::File,
    brought: Mutex<BTreeSet<u64>>,
    /// Missed and not brought, while the link is down.
    missed: Mutex<BTreeSet<u64>>,
    up: AtomicBool,
    end: AtomicBool,
}

impl Source {
    fn write(&self, page: u64) {
        if self.brought.lock().unwrap().insert(page) {
            let at = (page * PAGE) as usize;
            let bytes = &self.pages[at..at + PAGE as usize];
            std::os::unix::fs::FileExt::write_all_at(&self.memory, bytes, page * PAGE).unwrap();
        }
    }

    fn bring(&self, page: u64) {
        self.write(page);
        let mut range = [self.base + page * PAGE, PAGE];
        // SAFETY: `range` is laid out as the kernel's `uffdio_range`.
        let woken = unsafe { libc::ioctl(self.faults.as_raw_fd(), UFFDIO_WAKE, &raw mut range) };
        assert_eq!(woken, 0, "{}", std::io::Error::last_os_error());
    }

    /// The pages of these bytes.
    fn bring_all(&self, from: u64, len: u64) {
        (from / PAGE..=(from + len - 1) / PAGE).for_each(|page| self.bring(page));
    }

    /// All that is left; nobody is woken.
    fn write_all(&self) {
        (0..self.pages.len() as u64 / PAGE).for_each(|page| self.write(page));
    }

    fn serve(&self) {
        while !self.end.load(Ordering::SeqCst) {
            let mut message = [0; 32];
            match (&self.faults).read(&mut message) {
                Ok(32) => {}
                _ => {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                    continue;
                }
            }
            let address = u64::from_ne_bytes(message[16..24].try_into().unwrap());
            let page = (address - self.base) / PAGE;
            if self.up.load(Ordering::SeqCst) {
                self.bring(page);
            } else {
                self.missed.lock().unwrap().insert(page);
            }
        }
    }

    fn missing(&self, page: u64) {
        until("a page to be missed", || self.missed.lock().unwrap().contains(&page).then_some(()));
    }
}

struct Arriving {
    link: Option<Link>,
    source: Arc<Source>,
    server: Option<JoinHandle<()>>,
}

/// The guest leaves its pages behind; blockd is told so, and may begin.
fn arrive(guest: &mut Guest, socket: &std::path::Path, up: bool) -> Arriving {
    let pages = guest.leave();
    let (mut link, bases) = guest.connect_arriving(socket);
    let source = Arc::new(Source {
        pages,
        memory: guest.memory(),
        base: bases,
        faults: link.faults.take().unwrap(),
        brought: Mutex::default(),
        missed: Mutex::default(),
        up: AtomicBool::new(up),
        end: AtomicBool::new(false),
    });
    let theirs = Arc::clone(&source);
    let server = std::thread::spawn(move || theirs.serve());
    Arriving { link: Some(link), source, server: Some(server) }
}

impl Arriving {
    fn link(&mut self) -> &mut Link {
        self.link.as_mut().unwrap()
    }

    /// The same by a front end that has stopped to listen to faults.
    fn silent_end(&mut self, guest: &Guest) {
        self.source.end.store(true, Ordering::SeqCst);
        self.server.take().unwrap().join().unwrap();
        self.source.write_all();
        assert!(guest.map.size() > 0);
        self.link().front.postcopy_end().unwrap();
    }

    /// All that is left, and the end of it.
    fn end(&mut self, guest: &Guest) {
        self.source.bring_all(0, guest.map.size() as u64);
        self.link().front.postcopy_end().unwrap();
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.source.end.store(true, Ordering::SeqCst);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

#[test]
fn what_is_not_there_is_waited_for() {
    let _turn = turn();
    let daemon = Daemon::start();
    let export = daemon.raw("d", SIZE);
    daemon.open(&export);
    let mut guest = Guest::new(2);
    let first = guest.send(0, WRITE, 0, Data::Out(&pattern(1, 65536)));
    let second = guest.send(1, WRITE, 128, Data::Out(&pattern(2, 65536)));
    let mut there = arrive(&mut guest, &export.socket, true);
    there.link().begin(&guest);
    (0..2).for_each(|q| there.link().kick(q));
    // Looking into the guest's memory would make zeros of what is not there yet.
    until("both to be carried out", || {
        let stats = daemon.state(&export).unwrap().stats;
        (stats.writes == 2).then_some(())
    });
    let brought = there.source.brought.lock().unwrap().clone();
    for (q, slot) in [(0, first), (1, second)] {
        let (header, data, _) = Guest::places(q, slot);
        let pages = (data / PAGE..(data + DATA) / PAGE).chain([header / PAGE]);
        let missed = pages.filter(|page| brought.contains(page)).count();
        assert_eq!(missed, 17, "each page of the request was missed, and fetched");
    }
    assert!(brought.len() < guest.map.size() / PAGE as usize / 2, "and no others");
    there.end(&guest);
    for q in 0..2 {
        let answers = until("the answer", || Some(guest.reap(q)).filter(|a| !a.is_empty()));
        assert_eq!((answers.len(), answers[0].status), (1, 0));
    }
    let bytes = std::fs::read(daemon.path("d")).unwrap();
    assert!(bytes[..65536] == pattern(1, 65536) && bytes[65536..131_072] == pattern(2, 65536));
    // It goes on with everybody else.
    for sector in [0, 256] {
        assert_eq!(there.link().write(&mut guest, sector, &pattern(sector, 4096)), 0);
        assert_eq!(there.link().read(&mut guest, sector, 4096).unwrap(), pattern(sector, 4096));
    }
    assert_eq!(guest.strays(), 0);
}

/// A link that is down while a request waits for a page.
struct Waits {
    daemon: Daemon,
    export: basin_blockd::control::Export,
    /// Of another disk.
    well: (Guest, Link),
    guest: Guest,
    there: Arriving,
}

impl Waits {
    /// One worker, so that nobody else works where it would stand still.
    fn start() -> Waits {
        let daemon = Daemon::start_with(Some(1));
        let (export, other) = (daemon.raw("d", SIZE), daemon.raw("good", SIZE));
        daemon.open(&export);
        daemon.open(&other);
        // A process that handles faults gets no other memory served.
        let mut well = Guest::new(2);
        let link = well.connect(&other.socket);
        let well = (well, link);
        let mut guest = Guest::new(2);
        let slot = guest.send(0, WRITE, 0, Data::Out(&pattern(1, 65536)));
        let mut there = arrive(&mut guest, &export.socket, false);
        let (header, data, _) = Guest::places(0, slot);
        there.link().begin(&guest);
        there.source.missing(Guest::ring(0) / PAGE);
        (0..2).for_each(|q| there.source.bring_all(Guest::ring(q), 3 * PAGE));
        there.link().kick(0);
        there.source.missing(header / PAGE);
        there.source.bring_all(header, 512);
        // All but the last of what is to be written.
        there.source.missing(data / PAGE);
        there.source.bring_all(data, DATA - PAGE);
        there.source.missing((data + DATA) / PAGE - 1);
        Waits { daemon, export, well, guest, there }
    }

    /// Everybody else goes on.
    fn others_go_on(&mut self) {
        let (well, link) = &mut self.well;
        assert_eq!(link.write(well, 0, &pattern(4, 4096)), 0);
        assert_eq!(link.read(well, 0, 4096).unwrap(), pattern(4, 4096));
    }

    fn nothing_is_written(&self) {
        let bytes = std::fs::read(self.daemon.path("d")).unwrap();
        assert!(bytes.iter().all(|b| *b == 0), "what was never there was not written");
    }
}

/// Only what needs the link waits, and ends when it has to.
fn never_arrives(cut: impl FnOnce(&mut Waits)) {
    let _turn = turn();
    let mut waits = Waits::start();
    waits.others_go_on();
    assert!(waits.daemon.state(&waits.export).unwrap().connected);
    cut(&mut waits);
    until("the front end to be gone", || {
        waits.daemon.state(&waits.export).is_none_or(|state| !state.connected).then_some(())
    });
    until("nobody to wait any more", || {
        (!waits.daemon.threads().iter().any(|name| name == "arriving")).then_some(())
    });
    waits.nothing_is_written();
    waits.others_go_on();
}

#[test]
fn nobody_waits_for_a_front_end_that_is_gone() {
    never_arrives(|waits| waits.there.link = None);
}

#[test]
fn nobody_waits_when_the_disk_is_closed() {
    never_arrives(|waits| waits.daemon.close(&waits.export));
}

/// The front end's main loop stands still until it is answered, and with it whoever could
/// mend its link.
#[test]
fn no_answer_waits_for_a_page() {
    let _turn = turn();
    let mut waits = Waits::start();
    let guest = &waits.guest;
    assert_eq!(waits.there.link().stop(2), [0, 0], "what has not all arrived was not taken");
    waits.nothing_is_written();
    let front = waits.there.link().front.clone();
    front.clone().set_vring_enable(0, false).unwrap();
    // The guest maps its memory anew.
    let bases = waits.there.link().map_again(guest);
    assert_ne!(bases, waits.there.source.base);
    assert_eq!(waits.there.link().capacity(), SIZE);
    waits.there.link().start(guest, &[0, 0]);
    front.clone().set_vring_enable(0, false).unwrap();
    front.clone().set_vring_enable(0, true).unwrap();
    waits.nothing_is_written();
    // The end comes although a page is waited for, and nobody listens to faults any more.
    waits.there.silent_end(&waits.guest);
    let guest = &mut waits.guest;
    let answers = until("the answer", || Some(guest.reap(0)).filter(|a| !a.is_empty()));
    assert_eq!((answers.len(), answers[0].status), (1, 0));
    let bytes = std::fs::read(waits.daemon.path("d")).unwrap();
    assert!(bytes[..65536] == pattern(1, 65536));
}

/// A front end that takes pages away again harms its own guest, and stops no worker.
#[test]
fn pages_that_go_again_are_waited_for_by_nobody() {
    let _turn = turn();
    let mut waits = Waits::start();
    let all = waits.guest.map.size() as u64;
    waits.there.source.bring_all(0, all);
    waits.there.source.up.store(false, Ordering::SeqCst);
    until("the write", || {
        (waits.daemon.state(&waits.export).unwrap().stats.writes == 1).then_some(())
    });
    waits.guest.leave();
    waits.there.link().kick(0);
    waits.there.link().kick(1);
    waits.others_go_on();
    assert_eq!(waits.there.link().front.get_vring_base(1).unwrap(), 0);
}

#[test]
fn a_blockd_that_comes_back_meanwhile_waits_for_all_of_it() {
    let _turn = turn();
    let (daemon, export, mut guest, there) = comes_back(true);
    until("why", || daemon.log().contains("has not all arrived").then_some(()));
    // What is left arrives; the front end, and whoever serves, close their descriptors.
    there.source.bring_all(0, guest.map.size() as u64);
    drop(there);
    goes_on(&daemon, &export, &mut guest);
}

/// It is told the end, and does not know of a beginning.
#[test]
fn a_blockd_that_comes_back_meanwhile_is_told_the_end() {
    let _turn = turn();
    let (daemon, export, mut guest, there) = comes_back(false);
    there.source.bring_all(0, guest.map.size() as u64);
    guest.tell_end(&export.socket);
    // Although descriptors are still open: a front end that failed to tell all keeps them.
    goes_on(&daemon, &export, &mut guest);
}

/// A blockd that is killed while memory arrives, before or after the guest began there,
/// and runs again: it refuses the memory.
fn comes_back(begun: bool) -> (Daemon, basin_blockd::control::Export, Guest, Arriving) {
    let mut daemon = Daemon::start();
    let export = daemon.raw("d", SIZE);
    daemon.open(&export);
    let mut guest = Guest::new(2);
    guest.send(0, WRITE, 0, Data::Out(&pattern(1, 65536)));
    let mut there = arrive(&mut guest, &export.socket, true);
    if begun {
        there.link().begin(&guest);
    }
    daemon.kill();
    daemon.launch();
    assert!(guest.offer_memory(&export.socket).is_err(), "it would be read as zeros");
    (daemon, export, guest, there)
}

/// What was asked before, and what is now.
fn goes_on(daemon: &Daemon, export: &basin_blockd::control::Export, guest: &mut Guest) {
    let link = guest.connect(&export.socket);
    let answers = until("the answer", || Some(guest.reap(0)).filter(|a| !a.is_empty()));
    assert_eq!((answers.len(), answers[0].status), (1, 0));
    assert_eq!(link.write(guest, 128, &pattern(3, 4096)), 0);
    let bytes = std::fs::read(daemon.path("d")).unwrap();
    assert!(bytes[..65536] == pattern(1, 65536) && bytes[65536..69632] == pattern(3, 4096));
}

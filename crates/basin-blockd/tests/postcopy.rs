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
use support::{Daemon, pattern, refusal, until};
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
    fn bring(&self, page: u64) {
        if self.brought.lock().unwrap().insert(page) {
            let at = (page * PAGE) as usize;
            let bytes = &self.pages[at..at + PAGE as usize];
            std::os::unix::fs::FileExt::write_all_at(&self.memory, bytes, page * PAGE).unwrap();
        }
        let mut range = [self.base + page * PAGE, PAGE];
        // SAFETY: `range` is laid out as the kernel's `uffdio_range`.
        let woken = unsafe { libc::ioctl(self.faults.as_raw_fd(), UFFDIO_WAKE, &raw mut range) };
        assert_eq!(woken, 0, "{}", std::io::Error::last_os_error());
    }

    /// The pages of these bytes.
    fn bring_all(&self, from: u64, len: u64) {
        (from / PAGE..=(from + len - 1) / PAGE).for_each(|page| self.bring(page));
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

    /// All that is left, and the end of it.
    fn end(&mut self, guest: &Guest) {
        self.source.bring_all(0, guest.map.size() as u64);
        self.link().front.postcopy_end().unwrap();
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.source.end.store(true, Ordering::SeqCst);
        let _ = self.server.take().unwrap().join();
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
    let mirror = basin_blockd::control::Mirror {
        volume: export.volume,
        generation: export.generation,
        address: ([127, 0, 0, 1], 1).into(),
        export: export.volume,
        host: support::fabric::host(2),
        limit: None,
    };
    let refused = daemon.ask(async |c| c.mirror(&mirror).await);
    assert!(refusal(refused).1.contains("has not all arrived"));
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

/// A link that is down: only what needs it waits, and ends when it has to.
fn never_arrives(cut: impl FnOnce(&Daemon, &basin_blockd::control::Export, &mut Arriving)) {
    let _turn = turn();
    let daemon = Daemon::start();
    let (export, other) = (daemon.raw("d", SIZE), daemon.raw("good", SIZE));
    daemon.open(&export);
    daemon.open(&other);
    let mut well = Guest::new(2);
    let link = well.connect(&other.socket);
    let mut guest = Guest::new(2);
    let slot = guest.send(0, WRITE, 0, Data::Out(&pattern(1, 65536)));
    let mut there = arrive(&mut guest, &export.socket, false);
    let (header, data, _) = Guest::places(0, slot);
    (0..2).for_each(|q| there.source.bring_all(Guest::ring(q), 3 * PAGE));
    there.source.bring_all(header, 512);
    there.link().begin(&guest);
    there.link().kick(0);
    // All but the last of what is to be written.
    there.source.missing(data / PAGE);
    there.source.bring_all(data, DATA - PAGE);
    there.source.missing((data + DATA) / PAGE - 1);
    assert_eq!(link.write(&mut well, 0, &pattern(4, 4096)), 0);
    assert_eq!(link.read(&mut well, 0, 4096).unwrap(), pattern(4, 4096));
    assert!(daemon.state(&export).unwrap().connected);
    cut(&daemon, &export, &mut there);
    until("the front end to be gone", || {
        daemon.state(&export).is_none_or(|state| !state.connected).then_some(())
    });
    let bytes = std::fs::read(daemon.path("d")).unwrap();
    assert!(bytes.iter().all(|b| *b == 0), "what was never there was not written");
    assert_eq!(link.read(&mut well, 0, 4096).unwrap(), pattern(4, 4096));
}

#[test]
fn nobody_waits_for_a_front_end_that_is_gone() {
    never_arrives(|_, _, there| there.link = None);
}

#[test]
fn nobody_waits_when_the_disk_is_closed() {
    never_arrives(|daemon, export, _| daemon.close(export));
}

/// The connection's own thread waits as well: for the queue to stop.
#[test]
fn nobody_waits_for_a_front_end_that_waits_for_blockd() {
    never_arrives(|daemon, export, there| {
        let front = there.link().front.clone();
        let stopping = std::thread::spawn(move || {
            use vhost::VhostBackend;
            front.get_vring_base(0).map_err(drop)
        });
        // It may or may not wait already: both have to end.
        daemon.close(export);
        assert!(stopping.join().unwrap().is_err());
    });
}

#[test]
fn a_blockd_that_comes_back_meanwhile_waits_for_all_of_it() {
    let _turn = turn();
    let mut daemon = Daemon::start();
    let export = daemon.raw("d", SIZE);
    daemon.open(&export);
    let mut guest = Guest::new(2);
    guest.send(0, WRITE, 0, Data::Out(&pattern(1, 65536)));
    let mut there = arrive(&mut guest, &export.socket, true);
    there.link().begin(&guest);
    daemon.kill();
    daemon.launch();
    assert!(guest.offer_memory(&export.socket).is_err(), "it would be read as zeros");
    assert!(daemon.log().contains("has not all arrived"));
    // What is left arrives; the front end, and whoever serves, close their descriptors.
    there.source.bring_all(0, guest.map.size() as u64);
    drop(there);
    let mut link = guest.connect(&export.socket);
    assert_eq!(link.write(&mut guest, 128, &pattern(3, 4096)), 0);
    assert!(link.capacity() == SIZE);
}

//! The parser against well-formed and hostile chains.

use std::cell::RefCell;
use std::collections::HashSet;

use proptest::prelude::*;

use super::chain::Descriptor;
use super::*;

const LIMITS: Limits = Limits { capacity: 1 << 20, read_only: false };
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// 64 KiB of guest memory and a table; notes what was read.
struct Guest {
    memory: Vec<u8>,
    table: Vec<Descriptor>,
    seen: RefCell<Vec<u16>>,
}

impl Guest {
    fn new(table: &[(u64, u32, u16)]) -> Guest {
        let chain = |(i, (addr, len, flags)): (usize, &(u64, u32, u16))| Descriptor {
            addr: *addr,
            len: *len,
            flags: *flags,
            next: i as u16 + 1,
        };
        Guest {
            memory: vec![0; 1 << 16],
            table: table.iter().enumerate().map(chain).collect(),
            seen: RefCell::default(),
        }
    }

    fn put(mut self, at: usize, bytes: &[u8]) -> Guest {
        self.memory[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn header(self, kind: u32, sector: u64) -> Guest {
        let mut h = kind.to_le_bytes().to_vec();
        h.extend([0; 4]);
        h.extend(sector.to_le_bytes());
        self.put(0, &h)
    }

    fn parse(&self) -> Result<(Request, Vec<Segment>, Vec<Range>), Refusal> {
        let mut parser = Parser::default();
        let request = parser.parse(self, 0, LIMITS)?;
        Ok((request, parser.data, parser.ranges))
    }
}

impl Source for Guest {
    fn descriptor(&self, index: u16) -> Option<Descriptor> {
        self.seen.borrow_mut().push(index);
        self.table.get(usize::from(index)).copied()
    }
    fn read(&self, addr: u64, buf: &mut [u8]) -> bool {
        let Ok(at) = usize::try_from(addr) else { return false };
        let Some(bytes) = at.checked_add(buf.len()).and_then(|end| self.memory.get(at..end)) else {
            return false;
        };
        buf.copy_from_slice(bytes);
        true
    }
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut b = sector.to_le_bytes().to_vec();
    b.extend(sectors.to_le_bytes());
    b.extend(flags.to_le_bytes());
    b
}

#[test]
fn a_read_as_linux_sends_it() {
    let guest =
        Guest::new(&[(0, 16, NEXT), (0x1000, 4096, NEXT | WRITE), (0x3000, 1, WRITE)]).header(0, 8);
    let (request, data, _) = guest.parse().unwrap();
    assert_eq!(request, Request { op: Op::Read, offset: 4096, len: 4096, status: 0x3000 });
    assert_eq!(data, [Segment { addr: 0x1000, len: 4096 }]);
}

#[test]
fn parts_may_share_and_span_descriptors() {
    // The header in two pieces, the second of which holds data too; status behind data.
    let guest = Guest::new(&[(0, 10, NEXT), (10, 6 + 512, NEXT), (0x4000, 1, WRITE)]).header(1, 1);
    let (request, data, _) = guest.parse().unwrap();
    assert_eq!((request.op, request.offset, request.len), (Op::Write, 512, 512));
    assert_eq!(data, [Segment { addr: 16, len: 512 }]);
    let guest = Guest::new(&[(0, 16, NEXT), (0x1000, 513, WRITE)]).header(0, 0);
    let (request, data, _) = guest.parse().unwrap();
    assert_eq!((request.len, request.status), (512, 0x1200));
    assert_eq!(data, [Segment { addr: 0x1000, len: 512 }]);
}

#[test]
fn an_indirect_table_is_followed() {
    let mut table = Vec::new();
    for (addr, len, flags, next) in
        [(0u64, 16u32, NEXT, 1u16), (0x1000, 512, NEXT | WRITE, 2), (0x2000, 1, WRITE, 0)]
    {
        table.extend(addr.to_le_bytes());
        table.extend(len.to_le_bytes());
        table.extend(flags.to_le_bytes());
        table.extend(next.to_le_bytes());
    }
    let guest = Guest::new(&[(0x8000, 48, INDIRECT)]).header(0, 0).put(0x8000, &table);
    assert_eq!(guest.parse().unwrap().0.len, 512);
    for len in [0, 15, 16, 32] {
        let guest = Guest::new(&[(0x8000, len, INDIRECT)]).header(0, 0).put(0x8000, &table);
        assert!(matches!(guest.parse(), Err(Refusal::Fatal(_))), "a table of {len} bytes");
    }
    let nested = Guest::new(&[(0x8000, 16, INDIRECT)]).put(0x8000 + 12, &INDIRECT.to_le_bytes());
    assert_eq!(nested.parse().unwrap_err(), Refusal::Fatal(ChainError::Indirect));
}

fn check_data(kind: u32, sector: u64, len: u32, expect: Result<u64, Status>) {
    let flags = if kind == 0 { NEXT | WRITE } else { NEXT };
    let guest = Guest::new(&[(0, 16, NEXT), (0x100, len, flags), (0x90, 1, WRITE)]);
    let got = guest.header(kind, sector).parse();
    let got = got.map(|(r, ..)| r.offset).map_err(|refusal| match refusal {
        Refusal::Answer { status, at, .. } => {
            assert_eq!(at, 0x90);
            status
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(got, expect, "kind {kind} sector {sector} len {len}");
}

#[test]
fn what_is_not_on_the_disk_is_refused() {
    for kind in [0, 1] {
        check_data(kind, 0, 512, Ok(0));
        check_data(kind, 2047, 512, Ok(2047 * 512));
        check_data(kind, 2047, 1024, Err(Status::IoError));
        check_data(kind, 2048, 512, Err(Status::IoError));
        check_data(kind, u64::MAX, 512, Err(Status::IoError));
        check_data(kind, u64::MAX / 512, 512, Err(Status::IoError));
        check_data(kind, 0, 0, Err(Status::IoError));
        check_data(kind, 0, 511, Err(Status::IoError));
        check_data(kind, 0, 513, Err(Status::IoError));
    }
    check_data(99, 0, 512, Err(Status::Unsupported));
}

fn check_ranges(kind: u32, payload: &[u8], expect: Result<usize, Status>) {
    let guest = Guest::new(&[(0, 16, NEXT), (0x100, payload.len() as u32, NEXT), (0x90, 1, WRITE)]);
    let got = guest.header(kind, 0).put(0x100, payload).parse();
    let got = got.map(|(_, _, ranges)| ranges.len()).map_err(|r| match r {
        Refusal::Answer { status, .. } => status,
        other => panic!("{other:?}"),
    });
    assert_eq!(got, expect, "kind {kind} {payload:?}");
}

#[test]
fn ranges_are_checked_each() {
    let (discard, zero) = (11, 13);
    check_ranges(discard, &range(0, 8, 0), Ok(1));
    check_ranges(discard, &[range(0, 8, 0), range(16, 8, 0)].concat(), Ok(2));
    check_ranges(discard, &range(0, 8, 1), Err(Status::Unsupported));
    check_ranges(zero, &range(0, 8, 1), Ok(1));
    check_ranges(zero, &range(0, 8, 2), Err(Status::Unsupported));
    check_ranges(zero, &range(2040, 8, 0), Ok(1));
    check_ranges(zero, &range(2041, 8, 0), Err(Status::IoError));
    check_ranges(zero, &range(u64::MAX, u32::MAX, 0), Err(Status::IoError));
    check_ranges(zero, &range(0, 0, 0), Err(Status::IoError));
    check_ranges(zero, &[], Err(Status::IoError));
    check_ranges(zero, &[0; 15], Err(Status::IoError));
    check_ranges(zero, &range(0, 1, 0).repeat(MAX_RANGES + 1), Err(Status::IoError));
}

#[test]
fn a_read_only_disk_takes_no_write() {
    let limits = Limits { read_only: true, ..LIMITS };
    for (kind, expect) in [(0, true), (4, true), (8, true), (1, false), (11, false), (13, false)] {
        let flags = if matches!(kind, 0 | 8) { NEXT | WRITE } else { NEXT };
        let guest = Guest::new(&[(0, 16, NEXT), (0x200, 512, flags), (0x90, 1, WRITE)]);
        let got = Parser::default().parse(&guest.header(kind, 0), 0, limits);
        assert_eq!(got.is_ok(), expect, "type {kind}");
    }
}

#[test]
fn without_a_status_byte_the_queue_stops() {
    assert_eq!(Guest::new(&[(0, 16, 0)]).parse().unwrap_err(), Refusal::NoStatus);
    let empty = Guest::new(&[(0, 16, NEXT), (0x90, 0, WRITE)]);
    assert_eq!(empty.parse().unwrap_err(), Refusal::NoStatus);
}

#[test]
fn a_loop_ends() {
    let mut guest = Guest::new(&[(0, 16, NEXT), (0, 16, NEXT)]);
    guest.table[1].next = 0;
    assert_eq!(guest.parse().unwrap_err(), Refusal::Fatal(ChainError::TooLong));
}

prop_compose! {
    fn descriptor()(
        addr in prop_oneof![0u64..0x12000, any::<u64>()],
        len in prop_oneof![Just(16u32), Just(1), Just(512), 0u32..5000, any::<u32>()],
        flags in 0u16..8,
        next in 0u16..20,
    ) -> Descriptor {
        Descriptor { addr, len, flags, next }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn whatever_the_guest_writes_the_outcome_is_safe(
        table in proptest::collection::vec(descriptor(), 1..16),
        memory in proptest::collection::vec(any::<u8>(), 512),
        kind in 0u32..16,
        sector in prop_oneof![0u64..4096, any::<u64>()],
    ) {
        let guest = Guest { memory, table, seen: RefCell::default() }.header(kind, sector);
        let mut parser = Parser::default();
        if let Ok(request) = parser.parse(&guest, 0, LIMITS) {
            match request.op {
                Op::Read | Op::Write => {
                    prop_assert!(request.offset + request.len <= LIMITS.capacity);
                    prop_assert!(request.len > 0 && request.len % SECTOR == 0);
                    prop_assert_eq!(parser.data.iter().map(|s| s.len).sum::<u64>(), request.len);
                }
                Op::Discard | Op::WriteZeroes => {
                    prop_assert!(!parser.ranges.is_empty());
                    for r in &parser.ranges {
                        prop_assert!(r.len > 0 && r.offset + r.len <= LIMITS.capacity);
                    }
                }
                Op::Flush | Op::GetId => {}
            }
            let seen = guest.seen.borrow();
            let once: HashSet<_> = seen.iter().collect();
            prop_assert_eq!(once.len(), seen.len(), "a descriptor was read twice");
        }
        prop_assert!(guest.seen.borrow().len() <= Chain::MAX + 1);
    }
}

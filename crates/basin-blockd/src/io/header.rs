//! Pure. What a qcow2 header may say, checked before the library reads it: sizes
//! that would make it allocate without bound, and features that would make it
//! read other files than the export names.

const MAGIC: u32 = 0x5146_49fb;
/// As QEMU: an L1 table of 32 MiB, a refcount table of 8 MiB.
const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// Bytes that [`check`] looks at.
pub const LEN: usize = 104;

/// What matters to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    pub size: u64,
    pub has_backing: bool,
    /// Its refcounts may be behind: it was not closed, or its version cannot tell.
    pub unclean: bool,
    /// It can bear the mark of being open.
    pub can_mark: bool,
}

/// Looks at the first bytes of an image of `file_len` bytes.
pub fn check(bytes: &[u8], file_len: u64) -> Result<Facts, String> {
    let u32_at = |at: usize| {
        bytes
            .get(at..at + 4)
            .map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
            .ok_or_else(short)
    };
    let u64_at = |at: usize| Ok(u64::from(u32_at(at)?) << 32 | u64::from(u32_at(at + 4)?));
    let u64_at = |at: usize| -> Result<u64, String> { u64_at(at) };
    if u32_at(0)? != MAGIC {
        return Err("it does not begin as a qcow2 image does".into());
    }
    let version = u32_at(4)?;
    if version != 2 && version != 3 {
        return Err(format!("version {version} of qcow2 is not known"));
    }
    let cluster_bits = u32_at(20)?;
    if !(9..=21).contains(&cluster_bits) {
        return Err(format!("clusters of 2^{cluster_bits} bytes"));
    }
    let cluster = 1u64 << cluster_bits;
    let size = u64_at(24)?;
    if u32_at(32)? != 0 {
        return Err("it is encrypted, which is not supported".into());
    }
    let l1_bytes = u64::from(u32_at(36)?) * 8;
    let l1_covers = u128::from(l1_bytes / 8) * u128::from(cluster / 8) * u128::from(cluster);
    if l1_bytes > MAX_L1_BYTES || size >= 1 << 56 {
        return Err(format!(
            "a size of {size} bytes, with an L1 table of {l1_bytes}, is too large"
        ));
    }
    // Extended entries (subclusters) are twice as long; the exact bound is the library's.
    if l1_covers < u128::from(size) {
        return Err(format!("its L1 table is too small for a size of {size} bytes"));
    }
    inside("L1 table", u64_at(40)?, l1_bytes, cluster, file_len)?;
    let refcount_bytes = u64::from(u32_at(56)?) * cluster;
    if refcount_bytes > MAX_REFCOUNT_TABLE_BYTES {
        return Err(format!("a refcount table of {refcount_bytes} bytes is too large"));
    }
    inside("refcount table", u64_at(48)?, refcount_bytes, cluster, file_len)?;
    let mut unclean = version == 2;
    if version == 3 {
        let incompatible = u64_at(72)?;
        unclean = incompatible & 1 != 0;
        if incompatible & 1 << 1 != 0 {
            return Err("it is marked as corrupt: repair it with qemu-img check -r all".into());
        }
        if incompatible & 1 << 2 != 0 {
            return Err("its data are in an external file, which is not supported".into());
        }
    }
    let has_backing = u64_at(8)? != 0;
    Ok(Facts { size, has_backing, unclean, can_mark: version == 3 })
}

fn short() -> String {
    "it is shorter than its header".into()
}

fn inside(name: &str, at: u64, len: u64, cluster: u64, file_len: u64) -> Result<(), String> {
    if len == 0 {
        return Ok(());
    }
    if !at.is_multiple_of(cluster) || at == 0 {
        return Err(format!("its {name} is at {at}, where none can be"));
    }
    match at.checked_add(len) {
        Some(end) if end <= file_len.next_multiple_of(cluster) => Ok(()),
        _ => Err(format!("its {name} lies past the end of the file: it is truncated")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FILE: u64 = 1 << 20;

    fn header(change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
        let mut h = vec![0u8; LEN];
        put32(&mut h, 0, MAGIC);
        put32(&mut h, 4, 3);
        put32(&mut h, 20, 16);
        put64(&mut h, 24, 1 << 30);
        put32(&mut h, 36, 2);
        put64(&mut h, 40, 3 << 16);
        put64(&mut h, 48, 1 << 16);
        put32(&mut h, 56, 1);
        change(&mut h);
        h
    }
    fn put32(h: &mut [u8], at: usize, v: u32) {
        h[at..at + 4].copy_from_slice(&v.to_be_bytes());
    }
    fn put64(h: &mut [u8], at: usize, v: u64) {
        h[at..at + 8].copy_from_slice(&v.to_be_bytes());
    }

    fn check_refused(what: &str, change: impl Fn(&mut Vec<u8>)) {
        let error = check(&header(change), FILE).unwrap_err();
        assert!(error.contains(what), "{error:?} says nothing of {what:?}");
    }

    #[test]
    fn a_good_header_passes() {
        let good = check(&header(|_| ()), FILE).unwrap();
        let expect = Facts { size: 1 << 30, has_backing: false, unclean: false, can_mark: true };
        assert_eq!(good, expect);
        assert!(check(&header(|h| put64(h, 72, 1)), FILE).unwrap().unclean);
        assert!(check(&header(|h| put32(h, 4, 2)), FILE).unwrap().unclean);
        assert!(check(&header(|h| put64(h, 8, 512)), FILE).unwrap().has_backing);
    }

    #[test]
    fn a_bad_header_is_refused_with_the_reason() {
        check_refused("begin", |h| h[0] = 0);
        check_refused("version 9", |h| put32(h, 4, 9));
        check_refused("2^40", |h| put32(h, 20, 40));
        check_refused("encrypted", |h| put32(h, 32, 1));
        check_refused("too large", |h| put32(h, 36, u32::MAX));
        check_refused("too small", |h| put64(h, 24, 1 << 55));
        check_refused("past the end", |h| put64(h, 40, 1 << 40));
        check_refused("where none can be", |h| put64(h, 40, 12345));
        check_refused("refcount table", |h| put32(h, 56, u32::MAX));
        check_refused("marked as corrupt", |h| put64(h, 72, 2));
        check_refused("external", |h| put64(h, 72, 4));
        check_refused("shorter", |h| h.truncate(30));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..LEN),
            changes in proptest::collection::vec((0usize..LEN, any::<u8>()), 0..8),
            len: u64,
        ) {
            let _ = check(&bytes, len >> 1);
            let _ = check(&header(|h| for (at, v) in &changes { h[*at] = *v }), len >> 1);
        }
    }
}

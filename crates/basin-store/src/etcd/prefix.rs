//! Pure. Prefixes as ranges, and lists in pages.

use bytes::Bytes;

use super::wire::KeyValue;

/// The first key that may start with the prefix. etcd has no empty key.
pub(crate) fn start(prefix: &str) -> Bytes {
    if prefix.is_empty() {
        Bytes::from_static(b"\0")
    } else {
        Bytes::copy_from_slice(prefix.as_bytes())
    }
}

/// The first key after all that start with the prefix; `\0`: there is none.
pub(crate) fn range_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// The first key after this one.
pub(crate) fn next_key(key: &[u8]) -> Bytes {
    [key, b"\0"].concat().into()
}

/// What one answer should hold at most, about.
const PAGE_BYTES: usize = 4 << 20;
pub(crate) const FIRST_PAGE: i64 = 500;
const LARGEST_PAGE: i64 = 5000;

/// How many entries to ask for next, going by the size of the last ones.
pub(crate) fn next_page(last: &[KeyValue]) -> i64 {
    // Beside key and value, an entry takes some 24 bytes.
    let bytes: usize = last.iter().map(|kv| kv.key.len() + kv.value.len() + 24).sum();
    let mean = bytes / last.len().max(1);
    i64::try_from(PAGE_BYTES / mean.max(1)).unwrap_or(LARGEST_PAGE).clamp(1, LARGEST_PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_covers_the_prefix() {
        let check = |prefix: &str, expect: &[u8]| assert_eq!(range_end(prefix), expect, "{prefix}");
        check("/basin/", b"/basin0");
        check("a", b"b");
        check("\u{10ffff}", b"\xf4\x8f\xbf\xc0");
        check("", b"\0");
        assert_eq!(&start("")[..], b"\0");
    }

    #[test]
    fn pages_go_by_size() {
        let entry = |size: usize| KeyValue { value: vec![0; size].into(), ..KeyValue::default() };
        let check = |size, expect| assert_eq!(next_page(&[entry(size), entry(size)]), expect);
        check(0, LARGEST_PAGE);
        check(4096 - 24, 1024);
        check(1 << 20, 3);
        check(8 << 20, 1);
        assert_eq!(next_page(&[]), LARGEST_PAGE);
    }
}

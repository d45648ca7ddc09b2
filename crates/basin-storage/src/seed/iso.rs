//! Pure. A small ISO 9660 file system in memory: a few files in one directory.
//!
//! Names are given three times, since readers differ: Rock Ridge (Linux, BSD),
//! Joliet (Windows), and short plain ones that nobody should need.

const BLOCK: usize = 2048;
/// 16 blocks of system area, then the three descriptors.
const PATH_TABLES: u32 = 19;
/// Little and big-endian path tables, plain and Joliet.
const ROOT: u32 = PATH_TABLES + 4;
const JOLIET_ROOT: u32 = ROOT + 1;
/// Where a Rock Ridge field that fits nowhere else would go on.
const CONTINUED: u32 = JOLIET_ROOT + 1;
const FILES: u32 = CONTINUED + 1;

/// A file of the image. The name has 1 to 30 of `a-z0-9-`.
pub struct IsoFile<'a> {
    pub name: &'a str,
    pub content: &'a [u8],
}

/// An extent, as directory records name it.
#[derive(Clone, Copy)]
struct Extent {
    block: u32,
    length: u32,
}

/// Builds the image; all dates in it are 1970, so that equal files give equal bytes.
///
/// `None` when there is no room: names too long, too many files for one directory
/// block, or 4 GiB of content.
pub fn build(label: &str, files: &[IsoFile<'_>]) -> Option<Vec<u8>> {
    let mut next = FILES;
    let mut extents = Vec::with_capacity(files.len());
    for file in files {
        let length = u32::try_from(file.content.len()).ok()?;
        extents.push(Extent { block: next, length });
        next = next.checked_add(length.div_ceil(BLOCK as u32))?;
    }
    let mut image = vec![0; next as usize * BLOCK];
    let mut put = |block: u32, bytes: &[u8]| -> Option<()> {
        let at = block as usize * BLOCK;
        image.get_mut(at..at + bytes.len())?.copy_from_slice(bytes);
        Some(())
    };
    put(16, &descriptor(Names::Plain, label, next))?;
    put(17, &descriptor(Names::Joliet, label, next))?;
    put(18, b"\xffCD001\x01")?;
    for (n, root) in [(0, ROOT), (2, JOLIET_ROOT)] {
        put(PATH_TABLES + n, &path_table(root.to_le_bytes(), 1u16.to_le_bytes()))?;
        put(PATH_TABLES + n + 1, &path_table(root.to_be_bytes(), 1u16.to_be_bytes()))?;
    }
    put(ROOT, &directory(Names::Plain, files, &extents)?)?;
    put(JOLIET_ROOT, &directory(Names::Joliet, files, &extents)?)?;
    put(CONTINUED, &rock_ridge_reference())?;
    for (file, extent) in files.iter().zip(&extents) {
        put(extent.block, file.content)?;
    }
    Some(image)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Names {
    Plain,
    Joliet,
}

fn both32(n: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&n.to_le_bytes());
    bytes[4..].copy_from_slice(&n.to_be_bytes());
    bytes
}

fn both16(n: u16) -> [u8; 4] {
    let mut bytes = [0; 4];
    bytes[..2].copy_from_slice(&n.to_le_bytes());
    bytes[2..].copy_from_slice(&n.to_be_bytes());
    bytes
}

fn ucs2(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

/// Years since 1900, month, day, hour, minute, second, zone.
const DATE: [u8; 7] = [70, 1, 1, 0, 0, 0, 0];

/// The primary volume descriptor, or Joliet's supplementary one.
fn descriptor(names: Names, label: &str, blocks: u32) -> Vec<u8> {
    let mut d = vec![0; BLOCK];
    let joliet = names == Names::Joliet;
    let (path_tables, root) =
        if joliet { (PATH_TABLES + 2, JOLIET_ROOT) } else { (PATH_TABLES, ROOT) };
    let text = |d: &mut Vec<u8>, at: usize, length: usize, text: &str| {
        let (bytes, pad): (Vec<u8>, &[u8]) =
            if joliet { (ucs2(text), b"\0 ") } else { (text.bytes().collect(), b" ") };
        let filled = bytes.into_iter().chain(pad.iter().copied().cycle());
        for (place, byte) in d[at..at + length].iter_mut().zip(filled) {
            *place = byte;
        }
    };
    d[0] = if joliet { 2 } else { 1 };
    d[1..6].copy_from_slice(b"CD001");
    d[6] = 1;
    for (at, length) in
        [(8, 32), (190, 128), (318, 128), (446, 128), (574, 128), (702, 37), (739, 37), (776, 37)]
    {
        text(&mut d, at, length, "");
    }
    text(&mut d, 40, 32, label);
    d[80..88].copy_from_slice(&both32(blocks));
    if joliet {
        // UCS-2, level 3.
        d[88..91].copy_from_slice(b"%/E");
    }
    d[120..124].copy_from_slice(&both16(1));
    d[124..128].copy_from_slice(&both16(1));
    d[128..132].copy_from_slice(&both16(BLOCK as u16));
    d[132..140].copy_from_slice(&both32(PATH_TABLE));
    d[140..144].copy_from_slice(&path_tables.to_le_bytes());
    d[148..152].copy_from_slice(&(path_tables + 1).to_be_bytes());
    let extent = Extent { block: root, length: BLOCK as u32 };
    d[156..190].copy_from_slice(&record(extent, true, &[0], &[]));
    for at in [813, 830] {
        d[at..at + 16].copy_from_slice(b"1970010100000000");
    }
    for at in [847, 864] {
        d[at..at + 16].copy_from_slice(b"0000000000000000");
    }
    d[881] = 1;
    d
}

/// The length of a path table with nothing but the root.
const PATH_TABLE: u32 = 10;

fn path_table(block: [u8; 4], parent: [u8; 2]) -> Vec<u8> {
    [&[1, 0][..], &block, &parent, &[0, 0]].concat()
}

/// A directory record.
fn record(extent: Extent, directory: bool, name: &[u8], system_use: &[u8]) -> Vec<u8> {
    let pad = usize::from(name.len().is_multiple_of(2));
    let length = 33 + name.len() + pad + system_use.len();
    let mut r = Vec::with_capacity(length);
    r.extend([length as u8, 0]);
    r.extend(both32(extent.block));
    r.extend(both32(extent.length));
    r.extend(DATE);
    r.extend([if directory { 2 } else { 0 }, 0, 0]);
    r.extend(both16(1));
    r.push(name.len() as u8);
    r.extend(name);
    r.extend(std::iter::repeat_n(0, pad));
    r.extend(system_use);
    r
}

/// The one directory: itself, its parent (itself), and the files by their order.
fn directory(names: Names, files: &[IsoFile<'_>], extents: &[Extent]) -> Option<Vec<u8>> {
    let root = match names {
        Names::Plain => Extent { block: ROOT, length: BLOCK as u32 },
        Names::Joliet => Extent { block: JOLIET_ROOT, length: BLOCK as u32 },
    };
    let rock_ridge = names == Names::Plain;
    let own =
        if rock_ridge { [sharing(), attributes(true), continued()].concat() } else { Vec::new() };
    let parent = if rock_ridge { attributes(true) } else { Vec::new() };
    let mut records = vec![record(root, true, &[0], &own), record(root, true, &[1], &parent)];
    let mut entries: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for (n, (file, extent)) in files.iter().zip(extents).enumerate() {
        if file.name.is_empty() || file.name.len() > 30 {
            return None;
        }
        let (name, system_use) = match names {
            Names::Plain => (
                format!("FILE{n:02}.;1").into_bytes(),
                [attributes(false), name(file.name)].concat(),
            ),
            Names::Joliet => (ucs2(file.name), Vec::new()),
        };
        let record = record(*extent, false, &name, &system_use);
        entries.push((name, record));
    }
    entries.sort();
    records.extend(entries.into_iter().map(|(_, record)| record));
    let bytes = records.concat();
    (bytes.len() <= BLOCK).then_some(bytes)
}

/// SUSP: system use sharing protocol is in use here.
fn sharing() -> Vec<u8> {
    b"SP\x07\x01\xbe\xef\0".to_vec()
}

/// SUSP: the rest of the root's fields is in another block.
fn continued() -> Vec<u8> {
    let length = rock_ridge_reference().len() as u32;
    [&b"CE\x1c\x01"[..], &both32(CONTINUED), &both32(0), &both32(length)].concat()
}

/// SUSP: the extension that the other fields are of.
fn rock_ridge_reference() -> Vec<u8> {
    let (id, text) = (
        b"RRIP_1991A",
        b"THE ROCK RIDGE INTERCHANGE PROTOCOL PROVIDES SUPPORT FOR POSIX FILE SYSTEM SEMANTICS",
    );
    let source = b"";
    let length = 8 + id.len() + text.len() + source.len();
    [
        &[b'E', b'R', length as u8, 1, id.len() as u8, text.len() as u8, source.len() as u8, 1][..],
        id,
        text,
        source,
    ]
    .concat()
}

/// Rock Ridge: mode, links, owner root.
fn attributes(directory: bool) -> Vec<u8> {
    let mode: u32 = if directory { 0o040_555 } else { 0o100_444 };
    let fields = [both32(mode), both32(if directory { 2 } else { 1 }), both32(0), both32(0)];
    [&b"PX\x24\x01"[..], &fields.concat()].concat()
}

/// Rock Ridge: the name as it is.
fn name(name: &str) -> Vec<u8> {
    [&[b'N', b'M', 5 + name.len() as u8, 1, 0][..], name.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_whole_and_content_is_where_the_directory_says() {
        let files = [
            IsoFile { name: "meta-data", content: b"a" },
            IsoFile { name: "user-data", content: &[7; 5000] },
            IsoFile { name: "empty", content: b"" },
        ];
        let image = build("cidata", &files).unwrap();
        assert_eq!(image.len(), (FILES as usize + 1 + 3) * BLOCK);
        assert_eq!(&image[FILES as usize * BLOCK..][..1], b"a");
        assert_eq!(&image[(FILES as usize + 1) * BLOCK..][..5000], &[7; 5000]);
        assert_eq!(&image[16 * BLOCK + 40..][..32], format!("{:32}", "cidata").as_bytes());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let long = "x".repeat(31);
        assert!(build("cidata", &[IsoFile { name: &long, content: b"" }]).is_none());
        let many: Vec<_> = (0..40).map(|_| IsoFile { name: "some-name", content: b"" }).collect();
        assert!(build("cidata", &many).is_none());
    }
}

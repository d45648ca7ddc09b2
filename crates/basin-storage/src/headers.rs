//! Pure. What the headers of disk formats say, as far as it decides whether a
//! stranger's disk is taken: what other files it names, and whether it is whole.

use crate::judge::{Refusal, check_size};

fn bytes<const N: usize>(head: &[u8], at: usize) -> Option<[u8; N]> {
    head.get(at..)?.first_chunk::<N>().copied()
}

fn short(name: &str) -> Refusal {
    Refusal::Damaged(format!("it is truncated: its {name} header is not all there"))
}

/// The fields of a qcow2 header that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Qcow2 {
    pub version: u32,
    pub backing: bool,
    pub size: u64,
    pub crypt: u32,
    pub snapshots: u32,
    /// Feature bits that a reader must know to read the disk right.
    pub incompatible: u64,
}

const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
const KNOWN: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2;

impl Qcow2 {
    pub fn parse(head: &[u8]) -> Result<Qcow2, Refusal> {
        let u32_at = |at| bytes(head, at).map(u32::from_be_bytes).ok_or(short("qcow2"));
        let u64_at = |at| bytes(head, at).map(u64::from_be_bytes).ok_or(short("qcow2"));
        if !head.starts_with(b"QFI\xfb") {
            return Err(Refusal::Damaged("it is no qcow2 file".into()));
        }
        let version = u32_at(4)?;
        Ok(Qcow2 {
            version,
            backing: u64_at(8)? != 0 || u32_at(16)? != 0,
            size: u64_at(24)?,
            crypt: u32_at(32)?,
            snapshots: u32_at(60)?,
            incompatible: if version >= 3 { u64_at(72)? } else { 0 },
        })
    }

    /// Whether a stranger's image with this header may be looked at further.
    pub fn check(&self) -> Result<(), Refusal> {
        let unfit = |why: &str| Err(Refusal::Unfit(why.into()));
        if !matches!(self.version, 2 | 3) {
            return unfit("its qcow version is not 2 or 3; convert it first");
        }
        if self.backing {
            return unfit(
                "it has a backing file, which an import does not follow; \
                 make it whole first: qemu-img convert -O qcow2",
            );
        }
        if self.incompatible & DATA_FILE != 0 {
            return unfit(
                "its data are in another file, which an import does not follow; \
                 make it whole first: qemu-img convert -O qcow2",
            );
        }
        if self.crypt != 0 {
            return unfit("it is encrypted; decrypt it first");
        }
        if self.incompatible & CORRUPT != 0 {
            return Err(Refusal::Damaged(
                "it is marked corrupt; repair it: qemu-img check -r all".into(),
            ));
        }
        if self.incompatible & !KNOWN != 0 {
            return unfit("it uses features of qcow2 that are unknown here; convert it first");
        }
        check_size(self.size)
    }

    /// Whether it can be served as it is. Rare features (other compressions,
    /// extended L2 entries, internal snapshots) are left behind by a conversion.
    pub fn plain(&self) -> bool {
        self.incompatible == 0 && self.snapshots == 0 && self.size.is_multiple_of(512)
    }
}

/// Refuses a VMDK that is anything but one file with all its data in it.
pub fn check_vmdk(head: &[u8]) -> Result<(), Refusal> {
    let u64_at = |at| bytes(head, at).map(u64::from_le_bytes).ok_or(short("VMDK"));
    let (capacity, place, length) = (u64_at(12)?, u64_at(28)?, u64_at(36)?);
    // A header without a capacity sends the reader to a list of other files.
    if capacity == 0 {
        return Err(Refusal::Unfit(
            "its data are in other files; make one file of it first".into(),
        ));
    }
    check_size(capacity.saturating_mul(512))?;
    if place == 0 || length == 0 {
        return Ok(());
    }
    let range = place.checked_mul(512).zip(length.checked_mul(512));
    let text = range
        .and_then(|(from, length)| {
            let from = usize::try_from(from).ok()?;
            let to = from.checked_add(usize::try_from(length).ok()?)?;
            head.get(from..to)
        })
        .ok_or_else(|| {
            Refusal::Unfit("its descriptor is not at its beginning; convert it first".into())
        })?;
    let text = String::from_utf8_lossy(text);
    let text = text.split('\0').next().unwrap_or_default();
    for line in text.lines().map(str::trim) {
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        let (key, value) = (key.trim(), value.trim().trim_matches('"'));
        let whole = match key {
            "parentCID" => value.eq_ignore_ascii_case("ffffffff"),
            "parentFileNameHint" => false,
            "createType" => matches!(value, "monolithicSparse" | "streamOptimized"),
            _ => true,
        };
        if !whole {
            return Err(Refusal::Unfit(format!(
                "it depends on other files ({key} is '{value}'); make one file of it first: \
                 qemu-img convert -O qcow2"
            )));
        }
    }
    Ok(())
}

/// Refuses a VDI that ends before its data do.
pub fn check_vdi(head: &[u8], file: Option<u64>) -> Result<(), Refusal> {
    let u32_at = |at| bytes(head, at).map(u32::from_le_bytes).map(u64::from).ok_or(short("VDI"));
    let size = bytes(head, 368).map(u64::from_le_bytes).ok_or(short("VDI"))?;
    check_size(size)?;
    let end = u32_at(344)? + u32_at(376)? * u32_at(388)?;
    match file {
        Some(file) if end > file => Err(Refusal::Damaged(format!(
            "it is truncated: its header tells of {end} bytes, {file} are there"
        ))),
        _ => Ok(()),
    }
}

/// Refuses a raw disk that ends before its partitions do.
pub fn check_partitions(head: &[u8], size: u64) -> Result<(), Refusal> {
    let truncated = |end: u64| {
        Err(Refusal::Damaged(format!(
            "it is truncated: its partition table tells of {end} bytes, {size} are there"
        )))
    };
    if head.get(512..520) == Some(b"EFI PART") {
        // The backup of the table is the disk's last sector.
        let last = bytes(head, 512 + 32).map_or(0, u64::from_le_bytes);
        let end = last.saturating_add(1).saturating_mul(512);
        return if end > size { truncated(end) } else { Ok(()) };
    }
    if head.get(510..512) != Some(b"\x55\xaa") {
        return Ok(());
    }
    let Some(table) = head.get(446..510) else { return Ok(()) };
    let entries = table.as_chunks::<16>().0;
    // A file system's boot sector has the same mark, but code in this place.
    if entries.iter().any(|e| !matches!(e[0], 0 | 0x80)) {
        return Ok(());
    }
    let end = entries.iter().filter(|e| !matches!(e[4], 0 | 0xee)).map(|e| {
        let at = |i: usize| u64::from(u32::from_le_bytes([e[i], e[i + 1], e[i + 2], e[i + 3]]));
        (at(8) + at(12)) * 512
    });
    match end.max() {
        Some(end) if end > size => truncated(end),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qcow2(change: impl FnOnce(&mut Vec<u8>)) -> Result<bool, Refusal> {
        let mut head = vec![0u8; 512];
        head[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        head[24..32].copy_from_slice(&(1u64 << 30).to_be_bytes());
        change(&mut head);
        let header = Qcow2::parse(&head)?;
        header.check().map(|()| header.plain())
    }

    fn refused<T: std::fmt::Debug>(result: Result<T, Refusal>, word: &str) {
        match result {
            Err(Refusal::Unfit(why) | Refusal::Damaged(why)) if why.contains(word) => {}
            other => panic!("expected a refusal with '{word}', got {other:?}"),
        }
    }

    #[test]
    fn qcow2_that_names_other_files_or_is_odd_is_refused() {
        assert_eq!(qcow2(|_| ()), Ok(true));
        assert_eq!(qcow2(|h| h[79] = 0x08), Ok(false));
        assert_eq!(qcow2(|h| h[63] = 1), Ok(false));
        refused(qcow2(|h| h[15] = 104), "backing file");
        refused(qcow2(|h| h[19] = 9), "backing file");
        refused(qcow2(|h| h[79] = 0x04), "another file");
        refused(qcow2(|h| h[79] = 0x02), "corrupt");
        refused(qcow2(|h| h[79] = 0x20), "unknown");
        refused(qcow2(|h| h[35] = 1), "encrypted");
        refused(qcow2(|h| h[7] = 1), "version");
        refused(qcow2(|h| h[24..32].fill(0)), "no size");
        refused(qcow2(|h| h[24..32].fill(0x7f)), "64 TiB");
        refused(qcow2(|h| h.truncate(30)), "truncated");
    }

    fn vmdk(capacity: u64, descriptor: &str) -> Result<(), Refusal> {
        let mut head = vec![0u8; 4096];
        head[..4].copy_from_slice(b"KDMV");
        head[12..20].copy_from_slice(&capacity.to_le_bytes());
        head[28..36].copy_from_slice(&1u64.to_le_bytes());
        head[36..44].copy_from_slice(&2u64.to_le_bytes());
        head[512..512 + descriptor.len()].copy_from_slice(descriptor.as_bytes());
        check_vmdk(&head)
    }

    #[test]
    fn vmdk_is_one_file_or_refused() {
        assert_eq!(vmdk(2048, "createType=\"monolithicSparse\"\nparentCID=ffffffff\n"), Ok(()));
        refused(vmdk(0, ""), "other files");
        refused(vmdk(2048, "createType=\"twoGbMaxExtentSparse\""), "other files");
        refused(vmdk(2048, "parentCID=12345678"), "other files");
        refused(vmdk(2048, "parentFileNameHint=\"/etc/shadow\""), "other files");
        refused(vmdk(u64::MAX, ""), "64 TiB");
        refused(check_vmdk(b"KDMV"), "truncated");
    }

    #[test]
    fn partitions_past_the_end_tell_of_truncation() {
        let mut gpt = vec![0u8; 1024];
        gpt[512..520].copy_from_slice(b"EFI PART");
        gpt[544..552].copy_from_slice(&2047u64.to_le_bytes());
        assert_eq!(check_partitions(&gpt, 1 << 20), Ok(()));
        refused(check_partitions(&gpt, (1 << 20) - 512), "truncated");

        let mut mbr = vec![0u8; 512];
        mbr[510..].copy_from_slice(b"\x55\xaa");
        assert_eq!(check_partitions(&mbr, 512), Ok(()));
        mbr[450] = 0x83;
        mbr[454..458].copy_from_slice(&8u32.to_le_bytes());
        mbr[458..462].copy_from_slice(&8u32.to_le_bytes());
        assert_eq!(check_partitions(&mbr, 8192), Ok(()));
        refused(check_partitions(&mbr, 8191), "truncated");
        mbr[446] = 0xe8;
        assert_eq!(check_partitions(&mbr, 512), Ok(()));
    }
}

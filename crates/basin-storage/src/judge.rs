//! Pure. The rules by which an import takes or refuses a file.
//!
//! Asked twice: of the first bytes, so that a wrong file is refused before all of
//! it was fetched, and of the whole.

use basin_model::image::{ImageKind, SourceFormat};

use crate::headers::{Qcow2, check_partitions, check_vdi, check_vmdk};
use crate::probe::{Looks, is_initrd, is_kernel, looks};

/// The largest disk that a guest may be given: 64 TiB.
pub const MAX_DISK: u64 = 64 << 40;
/// The largest kernel or initrd: they are loaded into the guest's memory.
pub const MAX_KERNEL: u64 = 4 << 30;

/// Why a file is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It is whole, but not something Basin takes.
    Unfit(String),
    /// It is not what it says it is.
    Damaged(String),
}

/// What becomes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Kept as it is: not a disk.
    Keep,
    /// A qcow2 that can be kept as it is once it was checked.
    KeepQcow2,
    /// Converted to qcow2.
    Convert(SourceFormat),
}

/// What is known of a file.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// Its first [`crate::probe::HEAD`] bytes, fewer only when it is shorter.
    pub head: &'a [u8],
    /// Its length and last [`crate::probe::TAIL`] bytes, once it is all there.
    pub end: Option<(u64, &'a [u8])>,
}

/// Takes or refuses a file. `stated` is the format somebody says it has.
pub fn judge(
    kind: ImageKind,
    stated: Option<SourceFormat>,
    seen: Seen<'_>,
) -> Result<Plan, Refusal> {
    if seen.head.is_empty() {
        return Err(Refusal::Damaged("it is empty".into()));
    }
    if kind != ImageKind::Disk && stated.is_some_and(|f| f != SourceFormat::Raw) {
        return unfit("only a disk has a format: leave it out");
    }
    match kind {
        ImageKind::Disk => disk(stated, seen),
        ImageKind::Iso => iso(seen),
        ImageKind::Kernel => {
            small(seen)?;
            match is_kernel(seen.head) {
                true => Ok(Plan::Keep),
                false => {
                    unfit("it is not a Linux kernel for x86 (neither bzImage nor ELF vmlinux)")
                }
            }
        }
        ImageKind::Initrd => {
            small(seen)?;
            match is_initrd(seen.head) {
                true => Ok(Plan::Keep),
                false => unfit("it is not an initrd (a cpio archive, plain or compressed)"),
            }
        }
    }
}

fn unfit<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Unfit(why.into()))
}

fn small(seen: Seen<'_>) -> Result<(), Refusal> {
    match seen.end {
        Some((length, _)) if length > MAX_KERNEL => unfit("it is larger than 4 GiB"),
        _ => Ok(()),
    }
}

fn iso(seen: Seen<'_>) -> Result<Plan, Refusal> {
    if looks(seen.head, None) != Looks::Iso && seen.head.get(0x8001..0x8006) != Some(b"CD001") {
        return unfit("it is not an ISO 9660 file; a disk is imported as kind disk");
    }
    let sectors =
        seen.head.get(0x8050..0x8054).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    if let (Some((length, _)), Some(sectors)) = (seen.end, sectors) {
        let said = u64::from(sectors) * 2048;
        // Some masters count padding that they then do not write.
        if said > length + (1 << 20) {
            return Err(Refusal::Damaged(format!(
                "it is truncated: its volume descriptor tells of {said} bytes, {length} are there"
            )));
        }
    }
    Ok(Plan::Keep)
}

fn disk(stated: Option<SourceFormat>, seen: Seen<'_>) -> Result<Plan, Refusal> {
    let found = match looks(seen.head, seen.end.map(|(_, tail)| tail)) {
        Looks::Disk(format) => format,
        Looks::Nothing => SourceFormat::Raw,
        Looks::Iso if stated == Some(SourceFormat::Raw) => SourceFormat::Raw,
        Looks::Iso => {
            return unfit(
                "it is an ISO 9660 file: import it as kind iso, or state format raw \
                 to have it as a disk",
            );
        }
        Looks::Compressed(_) => return unfit("it is compressed twice: unpack it first"),
        Looks::Foreign(name, remedy) => return unfit(format!("it is {name}; {remedy}")),
    };
    if let Some(stated) = stated
        && stated != found
    {
        let looks_like = match found {
            SourceFormat::Raw => "nothing in it is of that format".to_owned(),
            other => format!("it is {}", other.as_str()),
        };
        return unfit(format!("the format was stated as {}, but {looks_like}", stated.as_str()));
    }
    match found {
        SourceFormat::Raw => raw(seen),
        SourceFormat::Qcow2 => {
            let header = Qcow2::parse(seen.head)?;
            header.check()?;
            Ok(if header.plain() { Plan::KeepQcow2 } else { Plan::Convert(SourceFormat::Qcow2) })
        }
        SourceFormat::Vmdk => check_vmdk(seen.head).map(|()| Plan::Convert(SourceFormat::Vmdk)),
        SourceFormat::Vdi => check_vdi(seen.head, seen.end.map(|(length, _)| length))
            .map(|()| Plan::Convert(SourceFormat::Vdi)),
        SourceFormat::Vhdx => Ok(Plan::Convert(SourceFormat::Vhdx)),
    }
}

/// A raw file says nothing of its own size, but a disk has whole sectors, and
/// its partition table knows where it ends.
fn raw(seen: Seen<'_>) -> Result<Plan, Refusal> {
    if let Some((length, _)) = seen.end {
        if !length.is_multiple_of(512) {
            return Err(Refusal::Damaged(format!(
                "its {length} bytes are not whole sectors of 512, so it is truncated or no raw \
                 disk; if it really is one, pad it: truncate -s %512"
            )));
        }
        check_size(length)?;
        check_partitions(seen.head, length)?;
    }
    Ok(Plan::Convert(SourceFormat::Raw))
}

/// Whether a guest may have a disk of this size.
pub fn check_size(size: u64) -> Result<(), Refusal> {
    if size == 0 {
        return Err(Refusal::Damaged("its disk has no size".into()));
    }
    if size > MAX_DISK {
        return unfit(format!("its disk has {size} bytes; at most 64 TiB are possible"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KINDS: [ImageKind; 4] =
        [ImageKind::Disk, ImageKind::Iso, ImageKind::Kernel, ImageKind::Initrd];

    fn disk(head: &[u8], stated: Option<SourceFormat>) -> Result<Plan, Refusal> {
        let tail = &head[head.len().saturating_sub(512)..];
        judge(ImageKind::Disk, stated, Seen { head, end: Some((head.len() as u64, tail)) })
    }

    fn why(result: Result<Plan, Refusal>) -> String {
        match result {
            Err(Refusal::Unfit(why) | Refusal::Damaged(why)) => why,
            Ok(plan) => panic!("taken: {plan:?}"),
        }
    }

    #[test]
    fn raw_is_whole_sectors_that_look_like_nothing() {
        assert_eq!(disk(&[0; 1024], None), Ok(Plan::Convert(SourceFormat::Raw)));
        assert!(why(disk(&[0; 1000], None)).contains("truncated"));
        assert!(why(disk(&[], None)).contains("empty"));
        let mut vdi = vec![0; 1024];
        vdi[0x40..0x44].copy_from_slice(b"\x7f\x10\xda\xbe");
        assert!(why(disk(&vdi, Some(SourceFormat::Raw))).contains("it is vdi"));
        assert!(why(disk(&[0; 512], Some(SourceFormat::Qcow2))).contains("stated as qcow2"));
    }

    #[test]
    fn an_iso_is_a_disk_only_when_somebody_says_so() {
        let mut iso = vec![0; 64 << 10];
        iso[0x8001..0x8006].copy_from_slice(b"CD001");
        assert!(why(disk(&iso, None)).contains("kind iso"));
        assert_eq!(disk(&iso, Some(SourceFormat::Raw)), Ok(Plan::Convert(SourceFormat::Raw)));
        let seen = Seen { head: &iso, end: Some((iso.len() as u64, &[])) };
        assert_eq!(judge(ImageKind::Iso, None, seen), Ok(Plan::Keep));
        iso[0x8050..0x8054].copy_from_slice(&100_000u32.to_le_bytes());
        let seen = Seen { head: &iso, end: Some((iso.len() as u64, &[])) };
        assert!(why(judge(ImageKind::Iso, None, seen)).contains("truncated"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(head in proptest::collection::vec(any::<u8>(), 0..2000), magic in 0usize..6) {
            let magics: [&[u8]; 6] = [b"", b"QFI\xfb\0\0\0\x03", b"QFI\xfb\0\0\0\x02", b"KDMV", b"vhdxfile", b"conectix"];
            let head = [magics[magic], &head].concat();
            for kind in KINDS {
                for end in [None, Some((head.len() as u64, &head[..0]))] {
                    let _ = judge(kind, None, Seen { head: &head, end });
                }
            }
        }
    }
}

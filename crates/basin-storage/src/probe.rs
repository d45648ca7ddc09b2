//! Pure. Tells what a file is by its first and last bytes.
//!
//! Own code, and small, because the answer decides what happens to bytes from
//! strangers: `qemu-img`'s guess is a guess by their author.

use basin_model::image::SourceFormat;

/// How much of a file's beginning the rules look at.
pub const HEAD: usize = 64 << 10;
/// How much of its end.
pub const TAIL: usize = 512;

/// A compression that an import undoes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    Gzip,
    Xz,
    Zstd,
}

/// What a file looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Looks {
    /// A format that an import reads; never raw, which looks like nothing.
    Disk(SourceFormat),
    Iso,
    Compressed(Compression),
    /// Something else that is certainly not a plain disk: its name, and what to do.
    Foreign(&'static str, &'static str),
    /// Nothing known: a raw disk may look so.
    Nothing,
}

const CONVERT: &str = "convert it first: qemu-img convert -O qcow2";
const UNPACK: &str = "unpack it first and import the disk in it";

/// Signatures that stand at a fixed place of the head.
const SIGNATURES: &[(usize, &[u8], Looks)] = &[
    (0, b"QFI\xfb", Looks::Disk(SourceFormat::Qcow2)),
    (0, b"KDMV", Looks::Disk(SourceFormat::Vmdk)),
    (0, b"vhdxfile", Looks::Disk(SourceFormat::Vhdx)),
    (0x40, b"\x7f\x10\xda\xbe", Looks::Disk(SourceFormat::Vdi)),
    (0, b"\x1f\x8b\x08", Looks::Compressed(Compression::Gzip)),
    (0, b"\xfd7zXZ\0", Looks::Compressed(Compression::Xz)),
    (0, b"\x28\xb5\x2f\xfd", Looks::Compressed(Compression::Zstd)),
    (0, b"COWD", Looks::Foreign("a VMFS sparse disk", CONVERT)),
    (0, b"QED\0", Looks::Foreign("a QED disk", CONVERT)),
    (0, b"conectix", Looks::Foreign("a VHD disk", CONVERT)),
    (0, b"WithoutFreeSpace", Looks::Foreign("a Parallels disk", CONVERT)),
    (0, b"WithouFreSpacExt", Looks::Foreign("a Parallels disk", CONVERT)),
    (0, b"Bochs Virtual HD Image", Looks::Foreign("a Bochs disk", CONVERT)),
    (0, b"LUKS\xba\xbe", Looks::Foreign("a LUKS-encrypted disk", "decrypt it first")),
    (0, b"BZh", Looks::Foreign("a bzip2 file", "unpack it first: bunzip2")),
    (0, b"\x04\x22\x4d\x18", Looks::Foreign("an lz4 file", "unpack it first: unlz4")),
    (0, b"7z\xbc\xaf\x27\x1c", Looks::Foreign("a 7-Zip archive", UNPACK)),
    (0, b"PK\x03\x04", Looks::Foreign("a zip archive", UNPACK)),
    (0, b"Rar!\x1a\x07", Looks::Foreign("a RAR archive", UNPACK)),
    (257, b"ustar", Looks::Foreign("a tar archive or OVA", UNPACK)),
    (0, b"MSWIM\0\0\0", Looks::Foreign("a WIM image", "make a bootable disk of it first")),
    (0, b"hsqs", Looks::Foreign("a squashfs file system", "make a disk of it first")),
    (0, b"\x7fELF", Looks::Foreign("an ELF program", "a kernel is imported as kind kernel")),
    (0x8001, b"CD001", Looks::Iso),
];

/// What the file with this beginning and (where known already) this end looks like.
pub fn looks(head: &[u8], tail: Option<&[u8]>) -> Looks {
    let at =
        |place: usize, magic: &[u8]| head.get(place..).is_some_and(|rest| rest.starts_with(magic));
    if let Some((.., looks)) = SIGNATURES.iter().find(|(place, magic, _)| at(*place, magic)) {
        return *looks;
    }
    if is_vmdk_descriptor(head) {
        return Looks::Foreign(
            "a VMDK descriptor, which only names the files with the data",
            "make one file of it first: qemu-img convert -O qcow2 on the machine that has them all",
        );
    }
    if is_markup(head) {
        return Looks::Foreign("a web page", "use the address of the file itself");
    }
    match tail {
        Some(tail) if tail.starts_with(b"conectix") => Looks::Foreign("a VHD disk", CONVERT),
        Some(tail) if tail.starts_with(b"koly") => Looks::Foreign("a macOS disk image", CONVERT),
        _ => Looks::Nothing,
    }
}

/// A text whose first line that is not blank is the descriptor's.
fn is_vmdk_descriptor(head: &[u8]) -> bool {
    let start = head.len().min(4096);
    let text = String::from_utf8_lossy(&head[..start]).to_ascii_lowercase();
    text.lines().map(str::trim).find(|line| !line.is_empty()).is_some_and(|line| {
        line.starts_with("# disk descriptorfile") || line.starts_with("version=")
    })
}

fn is_markup(head: &[u8]) -> bool {
    let start = head.len().min(512);
    let text = String::from_utf8_lossy(&head[..start]).to_ascii_lowercase();
    let text = text.trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n']);
    ["<!doctype", "<html", "<?xml", "<head"].iter().any(|tag| text.starts_with(tag))
}

/// Whether these bytes begin an initial RAM disk that Linux unpacks.
pub fn is_initrd(head: &[u8]) -> bool {
    const MAGICS: &[&[u8]] = &[
        b"070701",
        b"070702",
        b"\x1f\x8b",
        b"\x28\xb5\x2f\xfd",
        b"\xfd7zXZ\0",
        b"\x02\x21\x4c\x18",
        b"\x04\x22\x4d\x18",
        b"BZh",
        b"\x5d\0\0",
        b"\x89LZO",
    ];
    MAGICS.iter().any(|magic| head.starts_with(magic))
}

/// Whether these bytes begin a Linux kernel for x86: bzImage, or an ELF vmlinux.
pub fn is_kernel(head: &[u8]) -> bool {
    let bz_image =
        head.get(0x1fe..0x200) == Some(b"\x55\xaa") && head.get(0x202..0x206) == Some(b"HdrS");
    let machine = head.get(18..20).map(|m| u16::from_le_bytes([m[0], m[1]]));
    let elf = head.starts_with(b"\x7fELF") && matches!(machine, Some(3 | 62));
    bz_image || elf
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn placed(at: usize, magic: &[u8]) -> Vec<u8> {
        let mut head = vec![0; 40 << 10];
        head[at..at + magic.len()].copy_from_slice(magic);
        head
    }

    #[test]
    fn every_signature_is_found_where_it_stands() {
        for (at, magic, expect) in SIGNATURES {
            assert_eq!(looks(&placed(*at, magic), None), *expect, "{magic:?}");
        }
    }

    #[test]
    fn zeros_and_boot_sectors_look_like_nothing() {
        assert_eq!(looks(&[], None), Looks::Nothing);
        assert_eq!(looks(&[0; 512], Some(&[0; 512])), Looks::Nothing);
        assert_eq!(looks(&placed(510, b"\x55\xaa"), None), Looks::Nothing);
    }

    #[test]
    fn texts_that_name_files_and_web_pages_are_seen() {
        for text in [
            "# Disk DescriptorFile\nversion=1\n",
            "\n\n  # disk descriptorfile",
            "version=1\nCID=1",
        ] {
            assert!(
                matches!(looks(text.as_bytes(), None), Looks::Foreign(name, _) if name.contains("VMDK"))
            );
        }
        for text in ["<!DOCTYPE html>", "\n <html lang=en>", "\u{feff}<?xml version='1.0'?>"] {
            assert!(
                matches!(looks(text.as_bytes(), None), Looks::Foreign("a web page", _)),
                "{text}"
            );
        }
    }

    #[test]
    fn a_fixed_vhd_is_known_by_its_end() {
        let tail = placed(0, b"conectix");
        assert!(matches!(looks(&[0; 512], Some(&tail)), Looks::Foreign("a VHD disk", _)));
    }

    #[test]
    fn kernels_are_x86() {
        let mut bz = placed(0x1fe, b"\x55\xaa");
        assert!(!is_kernel(&bz));
        bz[0x202..0x206].copy_from_slice(b"HdrS");
        assert!(is_kernel(&bz));
        let mut elf = placed(0, b"\x7fELF");
        assert!(!is_kernel(&elf));
        elf[18] = 62;
        assert!(is_kernel(&elf));
    }

    proptest! {
        // Each case is many bytes.
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn no_bytes_panic(head in proptest::collection::vec(any::<u8>(), 0..70_000), tail: Vec<u8>) {
            looks(&head, Some(&tail));
            is_kernel(&head);
            is_initrd(&head);
        }

        /// Whatever follows it, a signature at the very start is never overlooked.
        #[test]
        fn what_follows_a_signature_does_not_hide_it(rest in proptest::collection::vec(any::<u8>(), 0..40_000)) {
            for (at, magic, expect) in SIGNATURES.iter().filter(|(at, ..)| *at == 0) {
                let head = [*magic, &rest].concat();
                prop_assert_eq!(looks(&head, None), *expect, "{} {:?}", at, magic);
            }
        }
    }
}

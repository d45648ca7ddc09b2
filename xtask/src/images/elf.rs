//! Pure. What must be read out of kernels and their modules.

use anyhow::{Context, Result, bail};

/// The program that decompresses a kernel's payload, and the payload.
#[derive(Debug, PartialEq, Eq)]
pub struct Payload<'a> {
    pub decompressor: &'static str,
    pub bytes: &'a [u8],
}

/// The compressed ELF kernel in a bzImage, found as the x86 boot protocol says
/// (version 2.08 and newer: `payload_offset` and `payload_length`).
pub fn kernel_payload(image: &[u8]) -> Result<Payload<'_>> {
    let byte = |at: usize| image.get(at).copied().context("the kernel image is cut short");
    let number = |at: usize| -> Result<usize> {
        let bytes = image.get(at..at + 4).context("the kernel image is cut short")?;
        Ok(bytes.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
    };
    if image.get(0x202..0x206) != Some(b"HdrS") {
        bail!("not a Linux bzImage: the header's magic is missing");
    }
    let setup_sectors = match byte(0x1f1)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (setup_sectors + 1) * 512 + number(0x248)?;
    // The build appends the uncompressed size, four bytes.
    let end = (start + number(0x24c)?).saturating_sub(4);
    let bytes = image.get(start..end).context("the kernel's payload is cut short")?;
    let decompressor = match bytes {
        [0x02, 0x21, 0x4c, 0x18, ..] => "lz4",
        [0x1f, 0x8b, ..] => "gzip",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        _ => bail!("the kernel is compressed in a way that is not known here"),
    };
    Ok(Payload { decompressor, bytes })
}

/// The modules that a module needs, from its `.modinfo` section. Names are spelt
/// with underscores, as the kernel does.
pub fn module_depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = &module[at + KEY.len()..];
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

/// `wanted` and all that it needs, each after what it needs itself.
pub fn load_order(
    wanted: &[&str],
    depends: impl Fn(&str) -> Result<Vec<String>>,
) -> Result<Vec<String>> {
    fn visit(
        name: &str,
        depends: &impl Fn(&str) -> Result<Vec<String>>,
        path: &mut Vec<String>,
        order: &mut Vec<String>,
    ) -> Result<()> {
        if order.iter().any(|done| done == name) {
            return Ok(());
        }
        if path.iter().any(|open| open == name) {
            bail!("modules depend on each other in a circle: {path:?}");
        }
        path.push(name.to_owned());
        for needed in depends(name)? {
            visit(&needed, depends, path, order)?;
        }
        path.pop();
        order.push(name.to_owned());
        Ok(())
    }
    let mut order = Vec::new();
    for name in wanted {
        visit(name, &depends, &mut Vec::new(), &mut order)?;
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248] = 16;
        image[0x24c] = payload.len() as u8 + 4;
        image.extend([0; 16]);
        image.extend(payload);
        image.extend([0; 4]);
        image
    }

    #[test]
    fn a_payload_is_found() {
        let lz4 = [0x02, 0x21, 0x4c, 0x18, 1, 2, 3];
        let payload =
            kernel_payload(&image(&lz4)).map(|found| (found.decompressor, found.bytes.to_vec()));
        assert_eq!(payload.unwrap(), ("lz4", lz4.to_vec()));
    }

    #[test]
    fn broken_kernels_are_refused() {
        let check = |image: &[u8], expect: &str| {
            let error = kernel_payload(image).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        };
        check(b"MZ", "not a Linux bzImage");
        check(&image(b"nonsense"), "compressed in a way");
        let whole = image(&[0x1f, 0x8b, 0, 0]);
        check(&whole[..1030], "cut short");
    }

    #[test]
    fn dependencies_are_read() {
        let check = |bytes: &[u8], expect: &[&str]| assert_eq!(module_depends(bytes), expect);
        check(b"xx\0depends=virtio,net-failover\0retpoline=Y\0", &["virtio", "net_failover"]);
        check(b"xx\0depends=\0", &[]);
        check(b"no section", &[]);
    }

    #[test]
    fn modules_come_after_what_they_need() {
        let depends = |name: &str| -> Result<Vec<String>> {
            Ok(match name {
                "virtio_net" => vec!["net_failover".into(), "virtio".into()],
                "net_failover" => vec!["failover".into()],
                "knot" => vec!["knot".into()],
                _ => Vec::new(),
            })
        };
        let order = load_order(&["virtio_net", "virtio"], depends).unwrap();
        assert_eq!(order, ["failover", "net_failover", "virtio", "virtio_net"]);
        assert!(load_order(&["knot"], depends).is_err());
    }
}

//! A qcow2 image for callers that may block.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use futures::executor::block_on;
use imago::Mapping;
use imago::io_buffers::IoBuffer;

use super::{CHUNK, Image, Qcow2Disk, clear, flush};
use crate::io::plain::{Extent, Plain, push};
use crate::request::{Op, Range, SECTOR};

impl Plain for Qcow2Disk {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        caught(|| {
            let image = self.target.read();
            let mut bounce = buffer(&image, buf.len())?;
            for (n, part) in buf.chunks_mut(CHUNK).enumerate() {
                let at = offset + (n * CHUNK) as u64;
                let slice = bounce.as_mut_range(0..part.len()).into_slice();
                block_on(image.readv(slice.into(), at))?;
                part.copy_from_slice(bounce.as_ref_range(0..part.len()).into_slice());
            }
            Ok(())
        })
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        caught(|| {
            let image = self.target.read();
            let mut bounce = buffer(&image, buf.len())?;
            for (n, part) in buf.chunks(CHUNK).enumerate() {
                let at = offset + (n * CHUNK) as u64;
                bounce.as_mut_range(0..part.len()).into_slice().copy_from_slice(part);
                block_on(image.writev(bounce.as_ref_range(0..part.len()).into_slice().into(), at))?;
            }
            drop(image);
            self.target.commit()
        })
    }

    fn zero_at(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        caught(|| {
            clear(&self.target.image, Op::WriteZeroes, Range { offset, len, unmap })?;
            self.target.commit()
        })
    }

    fn sync(&self) -> io::Result<()> {
        caught(|| flush(&self.target.read()))
    }

    fn extents(&self, offset: u64, len: u64, most: usize) -> io::Result<Vec<Extent>> {
        caught(|| {
            let image = self.target.read();
            let (mut at, end) = (offset, offset + len);
            let mut extents: Vec<Extent> = Vec::new();
            // A mapping ends with a cluster that lies elsewhere: many make one extent.
            for _ in 0..most.saturating_mul(64) {
                if at >= end || extents.len() > most {
                    break;
                }
                let (mapping, n) = block_on(image.get_mapping(at, end - at))?;
                let zero = matches!(mapping, Mapping::Zero { .. } | Mapping::Eof { .. });
                // In whole sectors, whatever the image says.
                let n = match n / SECTOR * SECTOR {
                    0 => (end - at).min(SECTOR),
                    n => n.min(end - at),
                };
                push(&mut extents, Extent { len: n, zero });
                at += n;
            }
            extents.truncate(most.max(1));
            Ok(extents)
        })
    }
}

fn buffer(image: &Image, len: usize) -> io::Result<IoBuffer> {
    IoBuffer::new(len.min(CHUNK), image.mem_align().max(512))
}

/// A corrupt image may trip an assertion of the library.
fn caught<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(io::Error::other("the image's metadata contradict each other")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Layer;
    use basin_model::volume::VolumeFormat::Qcow2;
    use std::process::Command;

    const MIB: u64 = 1 << 20;

    fn sh(args: &[&str]) {
        assert!(Command::new(args[0]).args(&args[1..]).status().unwrap().success(), "{args:?}");
    }

    #[test]
    fn the_extents_of_a_chain_are_those_of_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let (base, top) = (path("base.qcow2"), path("top.qcow2"));
        let (b, t) = (base.to_str().unwrap(), top.to_str().unwrap());
        sh(&["qemu-img", "create", "-q", "-f", "qcow2", b, "8M"]);
        sh(&["qemu-io", "-c", "write -P 1 1M 2M", b]);
        sh(&["qemu-img", "create", "-q", "-f", "qcow2", "-b", b, "-F", "qcow2", t, "16M"]);
        sh(&["qemu-io", "-c", "write -z 2M 1M", "-c", "write -P 2 6M 1M", t]);
        let layers = [Layer { path: top, format: Qcow2 }, Layer { path: base, format: Qcow2 }];
        let disk = Qcow2Disk::open(&layers, None).unwrap();
        let found: Vec<_> =
            disk.extents(0, 16 * MIB, 100).unwrap().iter().map(|e| (e.len / MIB, e.zero)).collect();
        assert_eq!(found, [(1, true), (1, false), (4, true), (1, false), (9, true)]);
        assert_eq!(disk.extents(0, 16 * MIB, 1).unwrap(), [Extent { len: MIB, zero: true }]);
        let mut buf = vec![9; 3 * MIB as usize];
        disk.read_at(&mut buf, MIB).unwrap();
        assert!(buf[..MIB as usize].iter().all(|b| *b == 1));
        assert!(buf[MIB as usize..].iter().all(|b| *b == 0));
    }
}

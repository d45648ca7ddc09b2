//! A raw image for callers that may block.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::RawFile;
use crate::io::plain::{Aligned, Extent, Plain, push};
use crate::request::SECTOR;

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
const PIECE: usize = 1 << 20;

impl RawFile {
    /// Can direct I/O take it as it is?
    fn fits(&self, buf: &[u8]) -> bool {
        self.takes(&[libc::iovec { iov_base: buf.as_ptr().cast_mut().cast(), iov_len: buf.len() }])
    }
}

impl Plain for RawFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if self.fits(buf) {
            return self.file.read_exact_at(buf, offset);
        }
        let mut bounce = Aligned::new(buf.len().min(PIECE));
        for (n, part) in buf.chunks_mut(PIECE).enumerate() {
            let bounce = &mut bounce[..part.len()];
            self.file.read_exact_at(bounce, offset + (n * PIECE) as u64)?;
            part.copy_from_slice(bounce);
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if self.fits(buf) {
            return self.file.write_all_at(buf, offset);
        }
        let mut bounce = Aligned::new(buf.len().min(PIECE));
        for (n, part) in buf.chunks(PIECE).enumerate() {
            let bounce = &mut bounce[..part.len()];
            bounce.copy_from_slice(part);
            self.file.write_all_at(bounce, offset + (n * PIECE) as u64)?;
        }
        Ok(())
    }

    fn zero_at(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let modes: &[i32] = if unmap { &[PUNCH, ZERO] } else { &[ZERO] };
        for mode in modes {
            match fallocate(&self.file, *mode, offset, len) {
                Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
                done => return done,
            }
        }
        let zeros = Aligned::new(len.min(PIECE as u64) as usize);
        let mut done = 0;
        while done < len {
            let n = (len - done).min(zeros.len() as u64);
            self.file.write_all_at(&zeros[..n as usize], offset + done)?;
            done += n;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn extents(&self, offset: u64, len: u64, most: usize) -> io::Result<Vec<Extent>> {
        let end = offset + len;
        let mut extents = Vec::new();
        let mut at = offset;
        while at < end && extents.len() < most.max(1) {
            let data = match seek(&self.file, at, libc::SEEK_DATA) {
                Ok(data) => data.clamp(at, end),
                Err(e) if e.raw_os_error() == Some(libc::ENXIO) => end,
                // It cannot tell.
                Err(_) => at,
            };
            // A sector of which a part is data is data.
            let data = data / SECTOR * SECTOR;
            push(&mut extents, Extent { len: data.saturating_sub(at), zero: true });
            if data >= end || extents.len() >= most.max(1) {
                break;
            }
            let data = data.max(at);
            let hole = seek(&self.file, data, libc::SEEK_HOLE).unwrap_or(end);
            let hole = hole.next_multiple_of(SECTOR).max(data + SECTOR).min(end);
            push(&mut extents, Extent { len: hole - data, zero: false });
            at = hole;
        }
        Ok(extents)
    }
}

fn fallocate(file: &File, mode: i32, offset: u64, len: u64) -> io::Result<()> {
    let bad = |_| io::Error::from_raw_os_error(libc::EINVAL);
    let (offset, len) = (i64::try_from(offset).map_err(bad)?, i64::try_from(len).map_err(bad)?);
    // SAFETY: plain integers on an open descriptor.
    match unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Nothing else depends on the file's position.
fn seek(file: &File, offset: u64, whence: i32) -> io::Result<u64> {
    let offset = i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: plain integers on an open descriptor.
    let at = unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
    u64::try_from(at).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn check(written: &[(u64, u64)], ask: (u64, u64), expect: &[(u64, bool)]) {
        let path = tempfile::NamedTempFile::new().unwrap();
        path.as_file().set_len(8 * MIB).unwrap();
        for (at, len) in written {
            path.as_file().write_all_at(&vec![1; *len as usize], *at).unwrap();
        }
        let raw = RawFile::open(path.path(), None).unwrap();
        let extents = raw.extents(ask.0, ask.1, 100).unwrap();
        let found: Vec<_> = extents.iter().map(|e| (e.len, e.zero)).collect();
        assert_eq!(found, expect);
        assert_eq!(raw.extents(ask.0, ask.1, 1).unwrap(), extents[..1]);
    }

    #[test]
    fn holes_are_told_from_data() {
        check(&[], (0, 8 * MIB), &[(8 * MIB, true)]);
        check(&[(MIB, MIB)], (0, 8 * MIB), &[(MIB, true), (MIB, false), (6 * MIB, true)]);
        check(&[(MIB, MIB)], (MIB + 512, 1024), &[(1024, false)]);
        check(&[(MIB, MIB)], (2 * MIB - 512, 1024), &[(512, false), (512, true)]);
        check(&[(0, 8 * MIB)], (0, 8 * MIB), &[(8 * MIB, false)]);
    }

    #[test]
    fn any_buffer_will_do() {
        let path = tempfile::NamedTempFile::new().unwrap();
        path.as_file().set_len(8 * MIB).unwrap();
        let raw = RawFile {
            file: File::options().read(true).write(true).open(path.path()).unwrap(),
            size: (8 * MIB).into(),
            align: Some(512),
        };
        let bytes: Vec<u8> = (0..3 * MIB as usize + 513).map(|n| (n % 251) as u8).collect();
        let bytes = &bytes[1..];
        raw.write_at(bytes, 512).unwrap();
        let mut back = vec![0; bytes.len() + 1];
        raw.read_at(&mut back[1..], 512).unwrap();
        assert!(back[1..] == *bytes);
        raw.zero_at(1024, 1024, true).unwrap();
        raw.zero_at(4096, 512, false).unwrap();
        raw.read_at(&mut back[1..], 512).unwrap();
        assert!(back[1..513] == bytes[..512] && back[513..1537] == [0; 1024]);
        assert!(back[3585..4097] == [0; 512] && back[4097..] == bytes[4096..]);
    }
}

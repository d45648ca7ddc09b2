//! Writes a stream to a file, with holes for zeros, and never past the room there is.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use basin_model::Bytes;
use tokio_util::sync::CancellationToken;

use super::space::{Reservation, Space};
use crate::datastore::StorageError;
use crate::judge::MAX_DISK;

const BLOCK: usize = 64 << 10;
/// Room is asked for in steps of this.
const STEP: u64 = 64 << 20;

/// Copies all of `from` into `to`; gives the length. `reservation` grows as needed.
pub fn pour(
    from: &mut dyn Read,
    to: &File,
    space: &Space,
    reservation: &Reservation,
    cancel: &CancellationToken,
    explain_read: &mut dyn FnMut(io::Error) -> StorageError,
) -> Result<u64, StorageError> {
    let mut block = vec![0; BLOCK];
    let (mut length, mut written, mut room) = (0u64, 0u64, 0u64);
    loop {
        if cancel.is_cancelled() {
            return Err(StorageError::Cancelled);
        }
        let filled = fill(from, &mut block).map_err(&mut *explain_read)?;
        let data = &block[..filled];
        if data.iter().any(|b| *b != 0) {
            if written + filled as u64 > room {
                room = written + filled as u64 + STEP;
                // Near the end of the room a whole step may be too much to ask.
                let least = Bytes(written + filled as u64);
                reservation.raise(Bytes(room)).or_else(|_| {
                    room = least.get();
                    reservation.raise(least)
                })?;
            }
            to.write_all_at(data, length)
                .map_err(|e| space.explain("writing", Bytes(filled as u64), e))?;
            written += filled as u64;
        }
        length += filled as u64;
        if length > MAX_DISK {
            return Err(StorageError::Invalid("the file is larger than 64 TiB".into()));
        }
        if filled < BLOCK {
            break;
        }
    }
    to.set_len(length).map_err(|e| space.explain("writing", Bytes::ZERO, e))?;
    Ok(length)
}

/// Reads until the buffer is full or the stream at its end.
pub fn fill(from: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

//! Undoes the compression of a source. Decoders in safe Rust with bounded memory:
//! they read strangers' bytes inside the daemon.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::BlockDecodingStrategy;
use ruzstd::decoding::FrameDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};

use crate::probe::Compression;

/// What a decoder may take for its dictionary: what `xz -9` and `zstd --long` need.
const MEMORY: u64 = 128 << 20;

/// The bytes as they were before they were compressed.
pub fn unpack<'a>(compression: Compression, from: impl Read + 'a) -> Box<dyn Read + 'a> {
    let from = BufReader::with_capacity(64 << 10, from);
    match compression {
        Compression::Gzip => Box::new(MultiGzDecoder::new(from)),
        Compression::Xz => Box::new(XzReader::new_mem_limit(from, true, (MEMORY >> 10) as u32)),
        Compression::Zstd => {
            let mut decoder = FrameDecoder::new();
            decoder.set_max_window_size(MEMORY);
            Box::new(Zstd { from, decoder, in_frame: false })
        }
    }
}

/// Frame after frame, as `zstd` itself reads a file; checksums are compared.
struct Zstd<R> {
    from: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> Zstd<R> {
    /// False at the end of the file.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.from.fill_buf()?.is_empty() {
            match self.decoder.reset(&mut self.from) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    if io::copy(&mut (&mut self.from).take(length), &mut io::sink())? < length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(e) => return Err(io::Error::other(e)),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.in_frame {
                if !self.next_frame()? {
                    return Ok(0);
                }
                self.in_frame = true;
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(&mut self.from, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(io::Error::other)?;
            }
            let read = self.decoder.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            let said = self.decoder.get_checksum_from_data();
            if said.is_some() && said != self.decoder.get_calculated_checksum() {
                return Err(io::Error::other("a checksum inside the zstd file is wrong"));
            }
            self.in_frame = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    fn through(program: &[&str], data: &[u8]) -> Vec<u8> {
        let mut child = Command::new(program[0])
            .args(&program[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let data = data.to_owned();
        let feeder = std::thread::spawn(move || stdin.write_all(&data).unwrap());
        let output = child.wait_with_output().unwrap();
        feeder.join().unwrap();
        assert!(output.status.success());
        output.stdout
    }

    fn unpacked(compression: Compression, data: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        unpack(compression, data).read_to_end(&mut out).map(|_| out)
    }

    #[test]
    fn what_the_programs_pack_is_unpacked_and_what_is_cut_off_is_noticed() {
        let data: Vec<u8> = (0..400_000u32).flat_map(|n| (n / 3).to_le_bytes()).collect();
        for (compression, program) in [
            (Compression::Gzip, &["gzip", "-c"][..]),
            (Compression::Xz, &["xz", "-c"][..]),
            (Compression::Zstd, &["zstd", "-c"][..]),
        ] {
            let packed = through(program, &data);
            assert_eq!(unpacked(compression, &packed).unwrap(), data, "{compression:?}");
            // Two of them in a row are one file.
            let twice = unpacked(compression, &[&packed[..], &packed].concat()).unwrap();
            assert_eq!(twice.len(), 2 * data.len(), "{compression:?}");
            for cut in [1, packed.len() / 2, packed.len() - 20] {
                let cut = &packed[..packed.len() - cut];
                assert!(unpacked(compression, cut).is_err(), "{compression:?} {}", cut.len());
            }
            let mut bent = packed.clone();
            let middle = bent.len() / 2;
            bent[middle] ^= 0x10;
            assert_ne!(unpacked(compression, &bent).ok(), Some(data.clone()), "{compression:?}");
        }
    }
}
